// Casting rays on the CPU.
#include "cast.h"

#include "pool.h"

using namespace vox;

#pragma GCC visibility push(default)
extern "C" {

// See CastJob. `room` is not used here.
void vox_cast(const View* map, const double* origins, const double* directions, const int64_t* worlds, int64_t world,
              int64_t count, double voxel_size, double max_range, int64_t stop_at_unknown, int64_t threads,
              double* distance, int64_t* code, int64_t*) {
  Bounds box;
  for (int j = 0; j < 3; ++j) box.least[j] = 2 * kBias, box.most[j] = -1;
  for (int64_t slot = 0; slot < *map->count; ++slot)
    for (int j = 0; j < 3; ++j) {
      const int64_t at = corner_of(*map, slot, j);
      box.least[j] = std::min(box.least[j], at), box.most[j] = std::max(box.most[j], at + 7);
    }
  const CastJob job{*map,      origins,   directions,           worlds,   world,
                    voxel_size, max_range, stop_at_unknown != 0, distance, code};
  parallel(int(threads), count, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) job(i, box);
  });
}

}  // extern "C"
#pragma GCC visibility pop
