// Occupied voxels near points, on the CPU.
#include "nearest.h"

#include <vector>

#include "pool.h"

using namespace vox;

#pragma GCC visibility push(default)
extern "C" {

// See NearJob. `room` is not used here.
void vox_nearest(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                 double voxel_size, int64_t k, double limit, int64_t threads, float* metres, int32_t* voxel, void*) {
  const NearJob job{*map, points, worlds, world, voxel_size};
  parallel(int(threads), count, 512, [&](int64_t begin, int64_t end, int) {
    std::vector<Found> best(static_cast<size_t>(k));
#ifdef __AVX512F__
    if (k <= 8) {
      for (int64_t i = begin; i < end; ++i) job.nearest_eight(i, k, limit, metres, voxel);
      return;
    }
#endif
    for (int64_t i = begin; i < end; ++i) job.nearest(i, k, limit, best.data(), metres, voxel);
  });
}

void vox_count_within(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                      double voxel_size, double radius, int64_t threads, int64_t* out) {
  const NearJob job{*map, points, worlds, world, voxel_size};
  parallel(int(threads), count, 512, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) out[i] = job.count(i, radius);
  });
}

// Their distances and coordinates, those of point i from offset[i] on, in Morton order.
void vox_list_within(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                     double voxel_size, double radius, int64_t threads, const int64_t* offset, float* metres,
                     int32_t* voxel) {
  const NearJob job{*map, points, worlds, world, voxel_size};
  parallel(int(threads), count, 512, [&](int64_t begin, int64_t end, int) {
    std::vector<Block> blocks;  // few enough to sort
    for (int64_t i = begin; i < end; ++i) {
      Query q;
      if (!job.query(i, q)) continue;
      blocks.clear();
      each_block(*map, q, radius, [&](const Block& block, bool) { blocks.push_back(block); });
      std::sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.code < b.code; });
      int64_t to = offset[i];
      for (const Block& block : blocks)
        to += list_block(*map, q, block, radius * radius, voxel_size, metres + to, voxel + 3 * to);
    }
  });
}

}  // extern "C"
#pragma GCC visibility pop
