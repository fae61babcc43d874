// Casting rays through the map: the slabs of ray.h, with steps over blocks and cubes of 4 x 4 x 4
// that hold nothing to stop at.
#pragma once
#include <algorithm>
#include <limits>

#include "map.h"
#include "ray.h"

namespace vox {

// Whether voxels that no scan touched stop a ray too is known when this is compiled.
template <bool kStopAtUnknown>
struct Caster {
  const View& map;
  int64_t world;
  // The block that was looked at last.
  int64_t key = kEmpty, slot = -1;
  bool empty = true;  // nothing in it stops a ray

  VOX_BOTH uint64_t stops_of(int word) const {
    const uint64_t occupied = map.occupied[slot * 8 + word];
    return kStopAtUnknown ? occupied | ~map.known[slot * 8 + word] : occupied;
  }

  // Whether the ray stops in a voxel.
  VOX_BOTH bool stops(uint64_t code) {
    look(int64_t(code >> 9));
    if (slot < 0) return kStopAtUnknown;
    return stops_of(int(code >> 6 & 7)) >> (code & 63) & 1;
  }

  // The edge, in voxels, of the aligned cube around a voxel that holds nothing to stop at; 0: none.
  VOX_BOTH int empty_cube(uint64_t code) {
    look(int64_t(code >> 9));
    if (slot < 0) return kStopAtUnknown ? 0 : 8;
    if (stops_of(int(code >> 6 & 7))) return 0;
    return empty ? 8 : 4;
  }

  VOX_BOTH void look(int64_t block) {
    const int64_t wanted = world << kKeyBits | block;
    if (wanted == key) return;
    key = wanted, slot = find(map, wanted);
    uint64_t any = 0;
    for (int word = 0; slot >= 0 && word < 8; ++word) any |= stops_of(word);
    empty = !any;
  }
};

struct Hit {
  double distance;  // share of the ray at which the voxel is entered
  uint64_t code;
};

VOX_BOTH double share_at(const Ray& ray, int i, int64_t cell) {
  const double way = double(ray.to[i] - ray.from[i]);
  return way > 0 ? double((cell << kFraction) - ray.from[i]) / way : 0.0;
}

// Slabs that can be passed over from slab k on, since the ray stays in the cube of that edge.
VOX_BOTH int slabs_in_cube(const Ray& ray, const double inverse[3], const Crossing& at, int k, int edge) {
  int64_t last = (at.in[0] | (edge - 1)) - (ray.from[0] >> kFraction);  // slab
  for (int i = 1; i < 3; ++i) {
    if (ray.slope[i] == 0) continue;
    // In slab j the coordinate is below first + j slope, which must not reach the cube's end.
    const int64_t room = (((at.in[i] | (edge - 1)) + 1) << kFraction) - ray.first[i];
    // The largest j with j slope < room, or one less: then the next slab is looked at for nothing.
    int64_t slabs = room > 0 ? int64_t(double(room - 1) * inverse[i]) : -1;
    slabs -= slabs > 0 && slabs * ray.slope[i] >= room;
    last = std::min(last, slabs);
  }
  return int(std::min<int64_t>(last, ray.slabs - 1)) - k + 1;
}

// A box around all blocks of all worlds, in voxels: beyond it, nothing is occupied.
struct Bounds {
  int64_t least[3], most[3];
};

// The least voxel of the block of a slot, along an axis.
VOX_BOTH int64_t corner_of(const View& map, int64_t slot, int axis) {
  const uint64_t code = uint64_t(map.keys[slot]) & ((uint64_t{1} << kKeyBits) - 1);
  return 8 * int64_t(unspread(code >> axis));
}

template <bool kStopAtUnknown>
VOX_BOTH bool cast(Caster<kStopAtUnknown>& caster, const Ray& ray, const Bounds& box, Hit& hit) {
  int64_t begin = 0, last = ray.slabs;
  if (!kStopAtUnknown) {  // the slabs that the box has a part in
    const int a = ray.axis[0];
    const int64_t start = ray.from[0] >> kFraction, all = kMirror >> kFraction;
    begin = std::max(begin, (ray.mirrored[0] ? all - box.most[a] : box.least[a]) - start);
    last = std::min(last, (ray.mirrored[0] ? all - box.least[a] : box.most[a]) - start);
  }
  const double inverse[3] = {0, 1 / double(ray.slope[1]), 1 / double(ray.slope[2])};
  for (int k = int(begin); k <= last;) {
    const Crossing at = crossing(ray, k);
    const uint64_t entered = unmirrored(ray, at.in[0], at.in[1], at.in[2]);
    const int edge = caster.empty_cube(entered);
    if (edge) {
      const int passed = slabs_in_cube(ray, inverse, at, k, edge);
      if (passed > 0) {
        k += passed;
        continue;
      }
    }
    const int64_t path[3][2] = {{at.in[1], at.in[2]},
                                {at.y_first ? at.out[1] : at.in[1], at.y_first ? at.in[2] : at.out[2]},
                                {at.out[1], at.out[2]}};
    for (int s = 0; s < 3; ++s) {
      if (s && path[s][0] == path[s - 1][0] && path[s][1] == path[s - 1][1]) continue;
      const uint64_t code = unmirrored(ray, at.in[0], path[s][0], path[s][1]);
      if (!caster.stops(code)) continue;
      int through = 0;  // the axis whose boundary was crossed last
      if (s) through = path[s][0] != path[s - 1][0] ? 1 : 2;
      const int64_t cell = through == 0 ? at.in[0] : path[s][through - 1];
      hit.code = code;
      hit.distance = k == 0 && s == 0 ? 0.0 : share_at(ray, through, cell);
      return true;
    }
    ++k;
  }
  return false;
}

// Rays from origins along directions, [count, 3] each in metres, up to max_range or the grid's
// border. distance: metres at which the first voxel that stops the ray is entered, infinite where
// none does; code: its Morton code, -1 where none. A ray that begins off the grid or has no finite
// direction is refused: its code is -2.
struct CastJob {
  View map;
  const double *origins, *directions;
  const int64_t* worlds;  // of each ray, or null: one for all
  int64_t world;
  double voxel_size, max_range;
  bool stop_at_unknown;
  double* distance;
  int64_t* code;

  VOX_BOTH void operator()(int64_t i, const Bounds& box) const {
    const double inverse = 1 / voxel_size, inner = double(kBias) * voxel_size - voxel_size / 2;
    const double* o = origins + 3 * i;
    const double* d = directions + 3 * i;
    const double length = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    const bool good = on_grid(o[0] * inverse) & on_grid(o[1] * inverse) & on_grid(o[2] * inverse);
    distance[i] = std::numeric_limits<double>::infinity(), code[i] = -2;
    if (!good || !(length > 0) || !(length <= std::numeric_limits<double>::max())) return;
    double reach = max_range;
    for (int j = 0; j < 3; ++j) {
      const double along = d[j] / length;
      if (along == 0) continue;
      const double room = ((along > 0 ? inner : -inner) - o[j]) / along;
      reach = std::min(reach, room > 0 ? room : 0.0);
    }
    Fixed from, to;
    for (int j = 0; j < 3; ++j) {
      from.v[j] = to_fixed(o[j] * inverse);
      to.v[j] = to_fixed((o[j] + d[j] / length * reach) * inverse);
    }
    const int64_t in = worlds ? worlds[i] : world;
    Hit hit;
    code[i] = -1;
    if (stop_at_unknown) {
      Caster<true> caster{map, in};
      if (!cast(caster, make_ray(from, to), box, hit)) return;
    } else {
      Caster<false> caster{map, in};
      if (!cast(caster, make_ray(from, to), box, hit)) return;
    }
    distance[i] = hit.distance * reach;
    code[i] = int64_t(hit.code);
  }
};

}  // namespace vox
