// Queries on a device: one thread for each.
#include "cast.h"
#include "each.h"
#include "nearest.h"
#include "sight.h"

using namespace vox;

namespace {

struct Rehash {
  View map;
  VOX_BOTH void operator()(int64_t slot) const {
    const uint64_t mask = uint64_t(map.table_size) - 1;
    for (uint64_t at = hash(uint64_t(map.keys[slot])) & mask;; at = (at + 1) & mask)
      if (exchange_if(&map.table[at].key, kEmpty, map.keys[slot]) == kEmpty) {
        map.table[at].slot = slot;
        return;
      }
  }
};

struct Unproject {
  Sight sight;
  float* points;
  VOX_BOTH void operator()(int64_t i) const {
    const int64_t image = i / (sight.width * sight.height), pixel = i % (sight.width * sight.height);
    const double u_slope = sight.u_slope(pixel % sight.width), v_slope = sight.v_slope(pixel / sight.width);
    Sight::point(sight.pose + image * 16, u_slope, v_slope, double(sight.depth[i]), points + 3 * i);
  }
};

struct Locate {
  View map;
  const int64_t *codes, *worlds;
  int64_t world;
  int64_t* out;
  VOX_BOTH void operator()(int64_t i) const {
    const int64_t slot = find(map, (worlds ? worlds[i] : world) << kKeyBits | codes[i] >> 9);
    out[i] = slot < 0 ? -1 : slot * kCells + (codes[i] & (kCells - 1));
  }
};

struct LogOdds {
  View map;
  const float* points;
  const int64_t* worlds;
  int64_t world;
  double inverse;
  int8_t* out;
  VOX_BOTH void operator()(int64_t i) const {
    uint64_t code = 0;
    bool good = true;
    for (int j = 0; j < 3; ++j) {
      const double x = double(points[3 * i + j]) * inverse;
      good &= on_grid(x);
      code |= spread(uint64_t(int64_t(floor(on_grid(x) ? x : 0)) + kBias)) << j;
    }
    const int64_t slot = good ? find(map, (worlds ? worlds[i] : world) << kKeyBits | int64_t(code >> 9)) : -1;
    out[i] = slot < 0 ? kUnknown : map.log_odds[slot * kCells + int64_t(code & (kCells - 1))];
  }
};

struct Widen {
  View map;
  Bounds* box;
  VOX_BOTH void operator()(int64_t slot) const {
    for (int j = 0; j < 3; ++j) {
      const int64_t at = corner_of(map, slot, j);
      if (at < fresh(box->least + j)) lower(box->least + j, at);
      if (at + 7 > fresh(box->most + j)) raise(box->most + j, at + 7);
    }
  }
};

struct Empty {
  Bounds* box;
  VOX_BOTH void operator()(int64_t j) const { box->least[j] = 2 * kBias, box->most[j] = -1; }
};

struct Cast {
  CastJob job;
  const Bounds* box;
  VOX_BOTH void operator()(int64_t i) const { job(i, *box); }
};

struct NearestK {
  NearJob job;
  int64_t k;
  double limit;
  float* metres;
  int32_t* voxel;
  Found* room;
  VOX_BOTH void operator()(int64_t i) const { job.nearest(i, k, limit, room + i * k, metres, voxel); }
};

struct Count {
  NearJob job;
  double radius;
  int64_t* out;
  VOX_BOTH void operator()(int64_t i) const { out[i] = job.count(i, radius); }
};

struct List {
  NearJob job;
  double radius;
  const int64_t* offset;
  float* metres;
  int32_t* voxel;
  VOX_BOTH void operator()(int64_t i) const {
    Query q;
    if (!job.query(i, q)) return;
    int64_t to = offset[i];
    each_block(job.map, q, radius, [&](const Block& block, bool) {
      to += list_block(job.map, q, block, radius * radius, job.voxel_size, metres + to, voxel + 3 * to);
    });
  }
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void vox_rehash(const View* map, int64_t stream) { each(stream, {map->capacity, map->count}, Rehash{*map}); }

void vox_unproject(const Sight* from, int64_t stream, float* points) {
  each(stream, {from->count * from->height * from->width}, Unproject{*from, points});
}

void vox_locate(const View* map, const int64_t* codes, const int64_t* worlds, int64_t world, int64_t count,
                int64_t stream, int64_t* out) {
  each(stream, {count}, Locate{*map, codes, worlds, world, out});
}

void vox_log_odds(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                  double voxel_size, int64_t stream, int8_t* out) {
  each(stream, {count}, LogOdds{*map, points, worlds, world, 1 / voxel_size, out});
}

// `room` holds a Bounds.
void vox_cast(const View* map, const double* origins, const double* directions, const int64_t* worlds, int64_t world,
              int64_t count, double voxel_size, double max_range, int64_t stop_at_unknown, int64_t stream,
              double* distance, int64_t* code, int64_t* room) {
  Bounds* box = reinterpret_cast<Bounds*>(room);
  each(stream, {3}, Empty{box});
  each(stream, {map->capacity, map->count}, Widen{*map, box});
  const CastJob job{*map,      origins,   directions,           worlds,   world,
                    voxel_size, max_range, stop_at_unknown != 0, distance, code};
  each(stream, {count}, Cast{job, box});
}

// `room` holds k Found for each point.
void vox_nearest(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                 double voxel_size, int64_t k, double limit, int64_t stream, float* metres, int32_t* voxel,
                 void* room) {
  const NearJob job{*map, points, worlds, world, voxel_size};
  each(stream, {count}, NearestK{job, k, limit, metres, voxel, static_cast<Found*>(room)});
}

void vox_count_within(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                      double voxel_size, double radius, int64_t stream, int64_t* out) {
  each(stream, {count}, Count{{*map, points, worlds, world, voxel_size}, radius, out});
}

// Those of point i from offset[i] on, in any order.
void vox_list_within(const View* map, const float* points, const int64_t* worlds, int64_t world, int64_t count,
                     double voxel_size, double radius, int64_t stream, const int64_t* offset, float* metres,
                     int32_t* voxel) {
  each(stream, {count}, List{{*map, points, worlds, world, voxel_size}, radius, offset, metres, voxel});
}

// What went wrong since the last call, as CUDA numbers it; 0: nothing. Nothing waits.
int64_t vox_device_error() {
#ifdef __CUDACC__
  return cudaGetLastError();
#else
  return 0;
#endif
}

}  // extern "C"
#pragma GCC visibility pop
