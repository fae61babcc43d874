// Marking a scan: every thread reads points and carves rays; then hits, which come last.
#pragma once
#include <algorithm>

#include "notes.h"
#include "points.h"
#include "pool.h"
#include "scan.h"
#include "sight.h"

namespace vox {

constexpr int64_t kPiece = 2048;  // points that a thread takes at a time
constexpr int kSmallWindow = 8, kLargeWindow = 9;

class Marking {
 public:
  Marking(Scratch& scratch, const Scan& scan, Mode mode, const Sight* sight)
      : s_(scratch), scan_(scan), mode_(mode), sight_(sight) {
    for (int i = 0; i < 3; ++i) origin_.v[i] = to_fixed(scan.origin[i] * scan.inverse);
    choose_window();
  }

  void run() {
    if (mode_ == kRayPerVoxel) {
      const double range = scan_.max_range;
      scan_.max_range = std::numeric_limits<double>::infinity();  // it is the centres' that counts
      each_point();
      store_hits();
      scan_.max_range = range;
      each_voxel(marked());
    } else {
      each_point();
    }
    if (mode_ == kProjective) each_block();
    flush();
    store_hits();
    s_.collect();
    int64_t far = 0;
    for (const Notes& from : s_.notes) far += from.counts.far;
    s_.many_far |= 16 * far > scan_.count;
  }

 private:
  // The small window has fewer pages, the large one saves what many far points cost.
  void choose_window() {
    const int bits = s_.many_far ? kLargeWindow : kSmallWindow;
    if (bits != s_.window().bits()) {
      s_.dilated.resize((size_t{1} << bits) + kLanes);
      for (size_t i = 0; i < s_.dilated.size(); ++i) s_.dilated[i] = spread_small(uint32_t(i & ((1u << bits) - 1)));
    }
    for (Notes& to : s_.notes) {
      to.window.reserve(bits);
      to.marker.cells = to.window.cells(), to.marker.touched = to.window.touched();
      to.marker.mask = s_.mask(), to.marker.coordinate_mask = coordinate_mask_ = (1u << bits) - 1;
      to.marker.dilated = s_.dilated.data();
#ifdef __AVX512F__
      to.marker.queue = &to.cells, to.marker.blocks = &to.blocks;
#endif
    }
    // Within that radius, blocks lie in a cube around the origin's and no two share a place.
    radius_ = (int64_t{1} << (bits - 1)) - 8;
    for (int i = 0; i < 3; ++i) {
      const int64_t cell = origin_.v[i] >> kFraction;
      reach_.least[i] = std::max<int64_t>(cell - radius_, 0);
      reach_.most[i] = std::min<int64_t>(cell + radius_, 2 * kBias - 1);
      s_.corner[i] = (cell >> 3) - (int64_t{1} << (bits - 4));
    }
  }

  void each_point() {
    parallel(s_.threads, scan_.count, kPiece, [&](int64_t begin, int64_t end, int thread) {
      Notes& to = s_.notes[size_t(thread)];
      for (int64_t at = begin; at < end; at += kPiece) piece(at, std::min(at + kPiece, end), to);
    });
  }

  void piece(int64_t begin, int64_t end, Notes& to) {
    alignas(64) uint32_t places[kPiece + kLanes];
    const Quick quick(scan_, reach_);
    int count = 0;
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      uint32_t others = place_points(scan_, reach_, quick, coordinate_mask_, scan_.points + 3 * i, places,
                                     count);
      to.counts.hits += kLanes - __builtin_popcount(others);
      if (mode_ == kRayPerPoint) {
        for (uint32_t rest = ~others & 0xffff; rest; rest &= rest - 1) {
          const float* p = scan_.points + 3 * (i + __builtin_ctz(rest));
          const double at[3] = {double(p[0]), double(p[1]), double(p[2])};
          Fixed end_of_ray;
          fix(at, scan_.inverse, end_of_ray);
          ray(end_of_ray, to);
        }
      }
      for (; others; others &= others - 1) single(i + __builtin_ctz(others), to);
    }
    for (; i < end; ++i) single(i, to);
    spread_places(places, count);
    if (mode_ == kEndpoint)
      store_places(to.marker, places, size_t(count));
    else
      to.places.insert(to.places.end(), places, places + count);
  }

  // A point that is far, or beyond range, or no point at all.
  void single(int64_t i, Notes& to) {
    const float* p = scan_.points + 3 * i;
    double at[3] = {double(p[0]), double(p[1]), double(p[2])};
    if (!(std::isfinite(at[0]) && std::isfinite(at[1]) && std::isfinite(at[2]))) {
      ++to.counts.not_finite;
      return;
    }
    const bool seen = shorten(scan_.origin, scan_.max_range, at);
    Fixed end;
    if (!fix(at, scan_.inverse, end)) {
      ++to.counts.off_grid;
      return;
    }
    const int64_t cell[3] = {end.v[0] >> kFraction, end.v[1] >> kFraction, end.v[2] >> kFraction};
    to.counts.far += !reach_.holds(cell);
    ++(seen ? to.counts.hits : to.counts.beyond_range);
    if (mode_ == kRayPerPoint) ray(end, to);
    if (seen) to.far.push_back(code_of(end));
  }

  // Rays to the centres of voxels that hold points.
  void each_voxel(const std::vector<uint64_t>& codes) {
    parallel(s_.threads, int64_t(codes.size()), 512, [&](int64_t begin, int64_t end, int thread) {
      Notes& to = s_.notes[size_t(thread)];
      for (int64_t i = begin; i < end; ++i) {
        const uint64_t voxel = codes[size_t(i)];
        double at[3];
        Fixed fixed;
        for (int j = 0; j < 3; ++j) {
          const int64_t cell = int64_t(unspread(voxel >> j));
          fixed.v[j] = (cell << kFraction) + kOne / 2;
          at[j] = (double(cell - kBias) + 0.5) * scan_.voxel_size;
        }
        const bool seen = shorten(scan_.origin, scan_.max_range, at);
        if (!seen && !fix(at, scan_.inverse, fixed)) continue;
        ray(fixed, to);
        if (seen) to.far.push_back(voxel);
      }
    });
  }

  // Blocks within range of a camera, on the grid; every thread takes layers of them.
  void each_block() {
    double farthest = 0;
    for (int64_t i = 0; i < sight_->width * sight_->height; ++i)
      if (std::isfinite(sight_->depth[i])) farthest = std::max(farthest, double(sight_->depth[i]));
    int64_t low[3], high[3];
    for (int j = 0; j < 3; ++j) {
      const double least = (scan_.origin[j] - scan_.max_range) * scan_.inverse;
      const double most = (scan_.origin[j] + scan_.max_range) * scan_.inverse;
      low[j] = (int64_t(std::floor(std::max(least, -double(kBias)))) + kBias) >> 3;
      high[j] = (int64_t(std::floor(std::min(most, double(kBias - 1)))) + kBias) >> 3;
    }
    parallel(s_.threads, high[2] - low[2] + 1, 1, [&](int64_t begin, int64_t end, int thread) {
      int64_t at[3];
      for (at[2] = low[2] + begin; at[2] < low[2] + end; ++at[2])
        for (at[1] = low[1]; at[1] <= high[1]; ++at[1])
          for (at[0] = low[0]; at[0] <= high[0]; ++at[0])
            if (in_view(*sight_, at, scan_.voxel_size, scan_.max_range, farthest)) look(at, s_.notes[size_t(thread)]);
    });
  }

  // Mark the voxels of a block that the camera looks through.
  void look(const int64_t block[3], Notes& to) {
    static constexpr int kSpread[8] = {0, 1, 8, 9, 64, 65, 72, 73};
    Facing at;
    face(*sight_, block, scan_.voxel_size, at);
    const uint64_t key = morton(uint64_t(block[0]), uint64_t(block[1]), uint64_t(block[2]));
    uint8_t* cells = nullptr;
    for (int y = 0; y < 8; ++y)
      for (int x = 0; x < 8; ++x) {
        uint8_t free[8];
        seen_through(*sight_, at, x, y, scan_.voxel_size, scan_.max_range, free);
        uint64_t any;
        std::memcpy(&any, free, 8);
        if (!any) continue;
        if (!cells) cells = s_.holds(key) ? to.marker.block(key) : to.sparse.block(int64_t(key));
        for (int z = 0; z < 8; ++z) cells[kSpread[x] | kSpread[y] << 1 | kSpread[z] << 2] |= free[z];
      }
  }

  // Mark what the ray passes through before the voxel in which it ends.
  void ray(const Fixed& end, Notes& to) {
    const Ray ray = make_ray(origin_, end);
    const int inside = int(std::min<int64_t>(ray.slabs, radius_));
    if (inside > 1) carve(to.marker, ray, 1, inside);
    near_slab(ray, 0, to.marker);
    if (ray.slabs <= radius_) {
      if (ray.slabs) near_slab(ray, ray.slabs, to.marker);
      return;
    }
    const uint64_t last = code_of(end);
    for (int k = inside; k <= ray.slabs; ++k) far_slab(ray, k, last, to);
  }

  // Mark one slab of a ray that ends in the window.
  static void near_slab(const Ray& ray, int k, const Marker& marker) {
    const Crossing at = crossing(ray, k);
    uint32_t axis[3][2];
    for (int i = 0; i < 3; ++i) {
      const uint32_t flip = ray.mirrored[i] ? marker.coordinate_mask : 0;
      for (int out = 0; out < 2; ++out) {
        const uint32_t cell = (uint32_t(out ? at.out[i] : at.in[i]) ^ flip) & marker.coordinate_mask;
        axis[i][out] = marker.dilated[cell] << ray.axis[i];
      }
    }
    const uint32_t from = axis[0][0] | axis[1][0] | axis[2][0], to = axis[0][0] | axis[1][1] | axis[2][1];
    const uint32_t between = axis[0][0] | axis[1][at.y_first] | axis[2][!at.y_first];
    // The voxel in which the ray ends is no part of it.
    const bool ends = k == ray.slabs;
    if (!(ends && from == to)) marker.mark(from, kFree);
    if (!(ends && between == to)) marker.mark(between, kFree);
    if (!ends) marker.mark(to, kFree);
  }

  void far_slab(const Ray& ray, int k, uint64_t last, Notes& to) {
    visit_slab(ray, k, [&](uint64_t voxel) {
      if (voxel == last) return;
      const int64_t at[3] = {int64_t(unspread(voxel)), int64_t(unspread(voxel >> 1)), int64_t(unspread(voxel >> 2))};
      if (reach_.holds(at))
        to.marker.mark(uint32_t(voxel) & to.marker.mask, kFree);
      else
        to.sparse.mark(voxel, kFree);
    });
  }

  void flush() {
#ifdef __AVX512F__
    for (Notes& from : s_.notes) from.cells.flush(from.marker.cells), from.blocks.flush(from.marker.touched);
#endif
  }

  // By value: stores of bytes might change what lies elsewhere.
  static void store_places(const Marker marker, const uint32_t* places, size_t count) {
    for (size_t i = 0; i < count; ++i) marker.mark(places[i], kHit);
  }

  // Hits come after all rays: a voxel that holds a point is not free.
  void store_hits() {
    for (Notes& from : s_.notes) {
      store_places(from.marker, from.places.data(), from.places.size());
      from.places.clear();
      for (const uint64_t voxel : from.far) {
        const int64_t at[3] = {int64_t(unspread(voxel)), int64_t(unspread(voxel >> 1)), int64_t(unspread(voxel >> 2))};
        if (reach_.holds(at))
          from.marker.mark(uint32_t(voxel) & from.marker.mask, kHit);
        else
          from.sparse.mark(voxel, kHit);
      }
      from.far.clear();
    }
  }

  // Codes of all voxels that hold points, each once; nothing stays marked.
  std::vector<uint64_t> marked() {
    std::vector<Counts> counts;
    for (const Notes& from : s_.notes) counts.push_back(from.counts);
    s_.collect();
    std::vector<uint64_t> codes;
    for (size_t i = 0; i < s_.keys.size(); ++i) {
      const uint8_t* cells = s_.block(i);
      for (int c = 0; c < kCells; ++c)
        if (cells[c] == kHit) codes.push_back(uint64_t(s_.keys[i]) << 9 | uint64_t(c));
    }
    s_.discard();
    for (size_t t = 0; t < counts.size(); ++t) s_.notes[t].counts = counts[t];
    return codes;
  }

  Scratch& s_;
  Scan scan_;
  const Mode mode_;
  const Sight* sight_;  // of a projective scan
  Fixed origin_;
  uint32_t coordinate_mask_;
  Reach reach_;
  int64_t radius_;
};

}  // namespace vox
