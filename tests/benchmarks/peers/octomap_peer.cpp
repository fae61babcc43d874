// OctoMap behind a C ABI, so that it runs in the process it is compared in.
#include <octomap/octomap.h>

#include <cmath>
#include <cstdint>
#include <vector>

using octomap::OcTree;
using octomap::OcTreeKey;
using octomap::point3d;

static point3d place(const double* at) {
  return point3d{static_cast<float>(at[0]), static_cast<float>(at[1]), static_cast<float>(at[2])};
}

extern "C" {

void* octo_new(double resolution) { return new OcTree(resolution); }
void octo_delete(void* tree) { delete static_cast<OcTree*>(tree); }

// Voxels that hold points are hit, once each.
void octo_insert_ends(void* tree, const float* points, int64_t count) {
  OcTree& t = *static_cast<OcTree*>(tree);
  octomap::KeySet hit;
  OcTreeKey key;
  for (int64_t i = 0; i < count; ++i)
    if (t.coordToKeyChecked(point3d(points[3 * i], points[3 * i + 1], points[3 * i + 2]), key)) hit.insert(key);
  for (const OcTreeKey& each : hit) t.updateNode(each, true, true);
  t.updateInnerOccupancy();
}

// And what rays pass through is free: rays to points, or to voxels that hold points.
void octo_insert_rays(void* tree, const float* points, int64_t count, const double* origin, int64_t to_voxels) {
  octomap::Pointcloud cloud;
  cloud.reserve(size_t(count));
  for (int64_t i = 0; i < count; ++i) cloud.push_back(points[3 * i], points[3 * i + 1], points[3 * i + 2]);
  const point3d from = place(origin);
  OcTree& t = *static_cast<OcTree*>(tree);
  t.insertPointCloud(cloud, from, -1, true, to_voxels != 0);
  t.updateInnerOccupancy();
}

// 1 occupied, 0 free, -1 unknown.
void octo_occupancy(const void* tree, const float* points, int64_t count, int8_t* out) {
  const OcTree& t = *static_cast<const OcTree*>(tree);
  for (int64_t i = 0; i < count; ++i) {
    const auto* node = t.search(points[3 * i], points[3 * i + 1], points[3 * i + 2]);
    out[i] = node ? int8_t(t.isNodeOccupied(node)) : int8_t(-1);
  }
}

// Distance to the centre of the voxel that stops each ray; infinite where none does.
void octo_cast(const void* tree, const double* origins, const double* directions, int64_t count, double max_range,
               double* distance) {
  const OcTree& t = *static_cast<const OcTree*>(tree);
  for (int64_t i = 0; i < count; ++i) {
    const point3d from = place(origins + 3 * i), along = place(directions + 3 * i);
    point3d end;
    const bool hit = t.castRay(from, along, end, true, max_range);
    distance[i] = hit ? (end - from).norm() : INFINITY;
  }
}

int64_t octo_bytes(const void* tree) { return int64_t(static_cast<const OcTree*>(tree)->memoryUsage()); }

// Leaves at the finest level; where `keys` [n, 3] and `occupied` [n] are given, what they are.
int64_t octo_leaves(const void* tree, int64_t* keys, int8_t* occupied) {
  const OcTree& t = *static_cast<const OcTree*>(tree);
  int64_t count = 0;
  for (auto leaf = t.begin_leafs(); leaf != t.end_leafs(); ++leaf, ++count) {
    if (!keys) continue;
    for (unsigned j = 0; j < 3; ++j) keys[3 * count + j] = int64_t(leaf.getKey()[j]) - 32768;
    occupied[count] = int8_t(t.isNodeOccupied(*leaf));
  }
  return count;
}

}  // extern "C"
