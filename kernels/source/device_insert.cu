// Insertion on a device: jobs on a stream, none of which the host waits for.
#include "map.h"
#include "marks.h"
#include "sight.h"

using namespace vox;

namespace {

struct Begin {
  State* state;
  const int64_t* count;
  VOX_BOTH void operator()(int64_t) const {
    const int64_t refused = state->refused;
    *state = State{};
    state->before = *count, state->refused = refused;
  }
};

struct MarkPoint {
  Scans scans;
  Marks to;
  int64_t mode;

  VOX_BOTH void operator()(int64_t i) const {
    const int64_t batch = i / scans.count;
    const float* p = scans.points + 3 * i;
    const double* origin = scans.origins + 3 * batch;
    double at[3] = {double(p[0]), double(p[1]), double(p[2])};
    // A number that is finite is a number that is 0 times itself.
    if (!(at[0] * 0 == 0 && at[1] * 0 == 0 && at[2] * 0 == 0)) return count(&to.state->not_finite);
    // The range counts for the centres of voxels where these are what rays go to.
    const double range = mode == kRayPerVoxel ? std::numeric_limits<double>::infinity() : scans.max_range;
    const bool seen = shorten(origin, range, at);
    const double inverse = 1 / scans.voxel_size;
    Fixed from, end;
    if (!fix(at, inverse, end) || !fix(origin, inverse, from)) return count(&to.state->off_grid);
    count(seen ? &to.state->hits : &to.state->beyond_range);
    if (mode == kRayPerPoint) carve(to, batch, from, end);
    if (!seen) return;
    Marker marker(to, batch, mode == kRayPerVoxel ? kEndMask : kHitMask);
    marker.mark(code_of(end)), marker.flush();
  }
};

struct CountEnds {
  State* state;
  VOX_BOTH void operator()(int64_t) const { state->ends = state->touched; }
};

// Rays to the centres of voxels that hold points.
struct MarkVoxel {
  Scans scans;
  Marks to;

  VOX_BOTH void operator()(int64_t i) const {
    const int64_t place = to.list[i / kCells];
    const int cell = int(i % kCells);
    if (!(to.masks[place * kMaskWords + kEndMask + (cell >> 6)] >> (cell & 63) & 1)) return;
    const int64_t key = to.keys[place], batch = key >> kKeyBits;
    const uint64_t code = uint64_t(key & ((int64_t{1} << kKeyBits) - 1)) << 9 | uint64_t(cell);
    const double* origin = scans.origins + 3 * batch;
    double at[3];
    Fixed from, end;
    for (int j = 0; j < 3; ++j) {
      const int64_t voxel = int64_t(unspread(code >> j));
      end.v[j] = (voxel << kFraction) + kOne / 2;
      at[j] = (double(voxel - kBias) + 0.5) * scans.voxel_size;
    }
    const bool seen = shorten(origin, scans.max_range, at);
    const double inverse = 1 / scans.voxel_size;
    if (!seen && !fix(at, inverse, end)) return;
    fix(origin, inverse, from);
    carve(to, batch, from, end);
    if (!seen) return;
    Marker marker(to, batch, kHitMask);
    marker.mark(code), marker.flush();
  }
};

// Rows of eight voxels along z that a camera looks through, in the blocks of a cube around it.
struct MarkRow {
  Scans scans;
  Marks to;
  Sight sights;
  int64_t side;  // of the cube, in blocks

  VOX_BOTH void operator()(int64_t i) const {
    const int x = int(i & 7), y = int(i >> 3 & 7);
    int64_t rest = i >> 6;
    const Sight sight = sights.one(rest / (side * side * side));
    const int64_t batch = rest / (side * side * side);
    int64_t block[3];
    for (int j = 0; j < 3; ++j, rest /= side) {
      const double least = (scans.origins[3 * batch + j] - scans.max_range) * (1 / scans.voxel_size);
      const double first = least < -double(kBias) ? -double(kBias) : least;
      if (!on_grid(first)) return;
      block[j] = ((int64_t(floor(first)) + kBias) >> 3) + rest % side;
      if (block[j] >> kBlockBits) return;
    }
    const double infinity = std::numeric_limits<double>::infinity();
    if (!in_view(sight, block, scans.voxel_size, scans.max_range, infinity)) return;
    Facing at;
    face(sight, block, scans.voxel_size, at);
    uint8_t free[8];
    seen_through(sight, at, x, y, scans.voxel_size, scans.max_range, free);
    Marker marker(to, batch, kFreeMask);
    const uint64_t row = morton(uint64_t(8 * block[0] + x), uint64_t(8 * block[1] + y), uint64_t(8 * block[2]));
    for (int z = 0; z < 8; ++z)
      if (free[z]) marker.mark(row | spread(uint64_t(z)) << 2);
    marker.flush();
  }
};

// The key in the map of a block that is marked.
VOX_BOTH int64_t map_key(const Marks& marks, const int64_t* worlds, int64_t place) {
  const int64_t key = marks.keys[place];
  return worlds[key >> kKeyBits] << kKeyBits | (key & ((int64_t{1} << kKeyBits) - 1));
}

// Whether anything of the block is hit or free: a voxel whose ray goes elsewhere is not.
VOX_BOTH bool is_marked(const Marks& marks, int64_t place) {
  uint64_t any = 0;
  for (int w = kHitMask; w < kMaskWords; ++w) any |= marks.masks[place * kMaskWords + w];
  return any != 0;
}

struct CountMissing {
  Marks marks;
  View map;
  const int64_t* worlds;
  VOX_BOTH void operator()(int64_t i) const {
    const int64_t place = marks.list[i];
    if (is_marked(marks, place) && find(map, map_key(marks, worlds, place)) < 0) count(&marks.state->missing);
  }
};

VOX_BOTH bool fits(const State& state, const View& map) {
  return !state.overflow && state.before + state.missing <= map.capacity;
}

// Find the slots of blocks, and take new ones. Every key comes once, so nobody waits for anybody.
struct Acquire {
  Marks marks;
  View map;
  const int64_t* worlds;
  VOX_BOTH void operator()(int64_t i) const {
    const int64_t place = marks.list[i];
    if (!fits(*marks.state, map) || !is_marked(marks, place)) {
      marks.slots[i] = -1;
      return;
    }
    const int64_t key = map_key(marks, worlds, place);
    const uint64_t mask = uint64_t(map.table_size) - 1;
    for (uint64_t at = hash(uint64_t(key)) & mask;; at = (at + 1) & mask) {
      int64_t seen = fresh(&map.table[at].key);
      if (seen == kEmpty) {
        seen = exchange_if(&map.table[at].key, kEmpty, key);
        if (seen == kEmpty) {
          const int64_t slot = add(map.count, 1);
          map.table[at].slot = slot, map.keys[slot] = key;
          marks.slots[i] = 2 * slot + 1;
          return;
        }
      }
      if (seen == key) {
        marks.slots[i] = 2 * map.table[at].slot;
        return;
      }
    }
  }
};

// Update a word of 64 voxels.
struct Update {
  Marks marks;
  View map;
  Evidence by;
  VOX_BOTH void operator()(int64_t i) const {
    const int64_t slot = marks.slots[i / 8] >> 1, place = marks.list[i / 8];
    if (marks.slots[i / 8] < 0) return;
    const bool is_new = marks.slots[i / 8] & 1;
    const int word = int(i % 8);
    const uint64_t hit = marks.masks[place * kMaskWords + kHitMask + word];
    const uint64_t free = marks.masks[place * kMaskWords + kFreeMask + word] & ~hit;
    if (!(hit | free) && !is_new) return;
    int8_t* cells = map.log_odds + slot * kCells + 64 * word;
    uint64_t known = 0, occupied = 0;
    for (int c = 0; c < 64; ++c) {
      const int8_t was = is_new ? kUnknown : cells[c];
      int32_t sum = was == kUnknown ? 0 : was;
      const bool here = (hit | free) >> c & 1;
      sum += hit >> c & 1 ? by.hit : by.miss;
      sum = sum < by.low ? by.low : sum > by.high ? by.high : sum;
      const int8_t now = here ? int8_t(sum) : was;
      if (here || is_new) cells[c] = now;
      known |= uint64_t(now != kUnknown) << c, occupied |= uint64_t(now >= by.threshold) << c;
    }
    map.known[slot * 8 + word] = known, map.occupied[slot * 8 + word] = occupied;
  }
};

// Forget the marks of one place.
struct Forget {
  Marks marks;
  VOX_BOTH void operator()(int64_t i) const {
    const int64_t place = marks.list[i];
    for (int w = 0; w < kMaskWords; ++w) marks.masks[place * kMaskWords + w] = 0;
    marks.keys[place] = kEmpty;
  }
};

struct End {
  State* state;
  int64_t capacity;
  bool applied;
  VOX_BOTH void operator()(int64_t) const {
    if (applied && (state->overflow || state->before + state->missing > capacity)) ++state->refused;
    state->touched = 0;
  }
};

Items all(const Marks& marks, int64_t per = 1) { return {marks.places * per, &marks.state->touched, per}; }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Mark scans, and count the blocks that the map lacks. Returns 0 where a job could not be launched.
int64_t vox_device_mark(const Marks* to, const View* map, const Scans* scans, const Sight* sights, int64_t mode,
                        int64_t stream) {
  const Marks marks = *to;
  bool ok = each(stream, {1}, Begin{marks.state, map->count});
  ok = ok && each(stream, {scans->batch * scans->count}, MarkPoint{*scans, marks, mode});
  if (mode == kRayPerVoxel) {
    ok = ok && each(stream, {1}, CountEnds{marks.state});
    ok = ok && each(stream, {marks.places * kCells, &marks.state->ends, kCells}, MarkVoxel{*scans, marks});
  }
  if (mode == kProjective) {
    const int64_t side = int64_t(floor(2 * scans->max_range / scans->voxel_size / 8)) + 2;
    ok = ok && each(stream, {scans->batch * side * side * side * 64}, MarkRow{*scans, marks, *sights, side});
  }
  return ok && each(stream, all(marks), CountMissing{marks, *map, scans->worlds});
}

// Update the map by what is marked, if it has room for all of it, and forget the marks.
int64_t vox_device_apply(const Marks* from, const View* map, const int64_t* worlds, const Evidence* by,
                         int64_t stream) {
  const Marks marks = *from;
  return each(stream, all(marks), Acquire{marks, *map, worlds}) &&
         each(stream, all(marks, 8), Update{marks, *map, *by}) && each(stream, all(marks), Forget{marks}) &&
         each(stream, {1}, End{marks.state, map->capacity, true});
}

int64_t vox_device_discard(const Marks* from, int64_t stream) {
  return each(stream, all(*from), Forget{*from}) && each(stream, {1}, End{from->state, 0, false});
}

}  // extern "C"
#pragma GCC visibility pop
