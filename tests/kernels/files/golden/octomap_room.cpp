// Made octomap_room.bt with OctoMap 1.9.7, and the voxels that OctoMap reads back from it, which
// octomap_room.npz holds.
//
//   g++ -O2 octomap_room.cpp -loctomap -loctomath && ./a.out > voxels.txt     x y z occupied
#include <octomap/octomap.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

// Rays from three places to the walls of a room, and a few far away.
void scan(octomap::OcTree& tree) {
  std::mt19937 chance(0);
  std::normal_distribution<float> normal;
  for (int place = 0; place < 3; ++place) {
    octomap::Pointcloud walls;
    for (int ray = 0; ray < 4000; ++ray) {
      const octomap::point3d along(normal(chance), normal(chance), normal(chance));
      const float reach = std::min({4.1f / std::fabs(along.x()), 3.1f / std::fabs(along.y()),
                                    2.6f / std::fabs(along.z())});
      walls.push_back(along * reach);
    }
    tree.insertPointCloud(walls, octomap::point3d(0.9f * place, 0.1f, -0.2f));
  }
  for (int corner = 0; corner < 8; ++corner) {
    const int low = 0, high = 65535;
    tree.updateNode(octomap::OcTreeKey(corner & 1 ? high : low, corner & 2 ? high : low,
                                       corner & 4 ? high : low), corner % 3 != 0);
  }
}

int main() {
  octomap::OcTree room(0.4), again(1.0);
  scan(room);
  if (!room.writeBinary("octomap_room.bt") || !again.readBinary("octomap_room.bt")) return 1;
  again.expand();
  for (auto leaf = again.begin_leafs(); leaf != again.end_leafs(); ++leaf) {
    const octomap::OcTreeKey key = leaf.getKey();
    std::printf("%d %d %d %d\n", key[0] - 32768, key[1] - 32768, key[2] - 32768,
                again.isNodeOccupied(*leaf) ? 1 : 0);
  }
}
