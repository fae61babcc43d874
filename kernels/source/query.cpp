// Reading the map: voxels at points, and the table itself.
#include <vector>

#include "map.h"
#include "pool.h"
#include "sight.h"

using namespace vox;

namespace {

constexpr int kGroup = 32;  // lookups in flight, to hide the memory's latency

// Key and place of the voxels that hold a group of points; key kEmpty where there is none.
void locate(const float* points, const int64_t* worlds, int64_t world, int count, double inverse, int64_t* key,
            int* cell) {
  uint64_t code[kGroup];
  bool good[kGroup];
  for (int l = 0; l < count; ++l) {
    const double x = double(points[3 * l]) * inverse, y = double(points[3 * l + 1]) * inverse,
                 z = double(points[3 * l + 2]) * inverse;
    good[l] = on_grid(x) & on_grid(y) & on_grid(z);
    const double safe[3] = {good[l] ? x : 0, good[l] ? y : 0, good[l] ? z : 0};
    code[l] = morton(uint64_t(int64_t(std::floor(safe[0])) + kBias), uint64_t(int64_t(std::floor(safe[1])) + kBias),
                     uint64_t(int64_t(std::floor(safe[2])) + kBias));
  }
  for (int l = 0; l < count; ++l) {
    const int64_t in = worlds ? worlds[l] : world;
    key[l] = good[l] ? in << kKeyBits | int64_t(code[l] >> 9) : kEmpty;
    cell[l] = int(code[l] & 511);
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The x86-64 level of this processor, 2 to 4; 2 elsewhere.
int vox_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    return 4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma")) return 3;
#endif
  return 2;
}

// Fill an empty table from the keys of the slots in use, by one thread.
void vox_rehash(const View* map, int64_t) {
  const uint64_t mask = uint64_t(map->table_size) - 1;
  for (int64_t slot = 0; slot < *map->count; ++slot) {
    uint64_t at = hash(uint64_t(map->keys[slot])) & mask;
    while (map->table[at].key != kEmpty) at = (at + 1) & mask;
    map->table[at] = {map->keys[slot], slot};
  }
}

// The point of every pixel, [count, height * width, 3].
void vox_unproject(const Sight* from, int64_t threads, float* points) {
  const Sight sight = *from;
  std::vector<double> slope;
  for (int64_t u = 0; u < sight.width; ++u) slope.push_back(sight.u_slope(u));
  parallel(int(threads), sight.count * sight.height, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double v_slope = sight.v_slope(row % sight.height);
      const double* pose = sight.pose + row / sight.height * 16;
      for (int64_t u = 0; u < sight.width; ++u) {
        const int64_t i = row * sight.width + u;
        Sight::point(pose, slope[size_t(u)], v_slope, double(sight.depth[i]), points + 3 * i);
      }
    }
  });
}

// Places of voxels, given by codes: 512 * slot + cell, or -1 where their block is unknown.
void vox_locate(const View* map, const int64_t* codes, const int64_t* worlds, int64_t world, int64_t count,
                int64_t threads, int64_t* out) {
  const uint64_t mask = uint64_t(map->table_size) - 1;
  parallel(int(threads), count, 4096, [&](int64_t begin, int64_t end, int) {
    int64_t key[kGroup];
    for (int64_t i = begin; i < end; i += kGroup) {
      const int n = int(end - i < kGroup ? end - i : kGroup);
      for (int l = 0; l < n; ++l) {
        key[l] = (worlds ? worlds[i + l] : world) << kKeyBits | codes[i + l] >> 9;
        __builtin_prefetch(&map->table[hash(uint64_t(key[l])) & mask]);
      }
      for (int l = 0; l < n; ++l) {
        const int64_t slot = find(*map, key[l]);
        out[i + l] = slot < 0 ? -1 : slot * kCells + (codes[i + l] & (kCells - 1));
      }
    }
  });
}

// Log-odds of the voxels that hold points; kUnknown where nothing was seen, or off the grid.
// Each point's world, or one for all where `worlds` is null.
void vox_log_odds(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                  double voxel_size, int64_t threads, int8_t* out) {
  const uint64_t mask = uint64_t(map->table_size) - 1;
  const double inverse = 1 / voxel_size;
  parallel(int(threads), count, 4096, [&](int64_t begin, int64_t end, int) {
    int64_t key[kGroup];
    int cell[kGroup];
    int64_t slot[kGroup];
    for (int64_t i = begin; i < end; i += kGroup) {
      const int n = int(end - i < kGroup ? end - i : kGroup);
      locate(points + 3 * i, worlds ? worlds + i : nullptr, world, n, inverse, key, cell);
      for (int l = 0; l < n; ++l) __builtin_prefetch(&map->table[hash(uint64_t(key[l])) & mask]);
      for (int l = 0; l < n; ++l) {
        slot[l] = key[l] == kEmpty ? -1 : find(*map, key[l]);
        if (slot[l] >= 0) __builtin_prefetch(map->log_odds + slot[l] * kCells + cell[l]);
      }
      for (int l = 0; l < n; ++l) out[i + l] = slot[l] < 0 ? kUnknown : map->log_odds[slot[l] * kCells + cell[l]];
    }
  });
}

}  // extern "C"
#pragma GCC visibility pop
