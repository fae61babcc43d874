// Reading a scan's points: sixteen at a time to places in the window, and one at a time otherwise.
#pragma once
#include <cmath>

#include "carve.h"

namespace vox {

struct Scan {
  const float* points;  // [count, 3], metres
  int64_t count;
  double origin[3];     // metres, on the grid
  double voxel_size, max_range, inverse;
};

// Voxels that the window holds: those near the origin's, and on the grid.
struct Reach {
  int64_t least[3], most[3];  // biased
  bool holds(const int64_t at[3]) const {
    bool inside = true;
    for (int i = 0; i < 3; ++i) inside &= at[i] >= least[i] && at[i] <= most[i];
    return inside;
  }
};

// Points are read in float32 where that cannot matter: where no coordinate is so near to a voxel's
// border, and no distance so near to the range, that float64 might decide otherwise.
struct Quick {
  bool usable = false, limited;
  float inverse, middle;  // coordinates whose fraction is within `middle` of a half are safe
  float origin[3], square, slack;

  Quick(const Scan& scan, const Reach& reach) {
    // Two roundings, of 1 / voxel_size and of the product, are below 2^-23 of the coordinate.
    double largest = 1, farthest = 0;
    for (int j = 0; j < 3; ++j) {
      const double least = double(reach.least[j] - kBias), most = double(reach.most[j] + 1 - kBias);
      largest = std::max(largest, std::max(std::abs(least), std::abs(most)));
      farthest = std::max(farthest, std::abs(scan.origin[j]));
      origin[j] = float(scan.origin[j]);
    }
    const double unsafe = largest * 0x1p-22, range = scan.max_range;
    inverse = float(scan.inverse), middle = float(0.5 - unsafe);
    limited = std::isfinite(range);
    square = float(range * range), slack = float(range * (farthest + range) * 0x1p-20);
    usable = unsafe < 0x1p-10 && inverse > 1e-30f && inverse < 1e30f && (!limited || range < 1e15);
  }
};

constexpr int kAxisBits = 10;  // of a window's coordinates, side by side in a place not yet spread

// Window coordinates, side by side, of the points that lie within range and in the window, packed:
// points next to each other lie mostly in one voxel, which is noted once. The others need a closer
// look. Returns their lanes.
#ifdef __AVX512F__
// Lanes 3 l + j of 48 numbers: from the first two registers, then from the third.
struct EveryThird {
  alignas(64) int32_t low[3][16], high[3][16];
  constexpr EveryThird() : low(), high() {
    for (int j = 0; j < 3; ++j)
      for (int l = 0; l < 16; ++l) {
        const int at = 3 * l + j;
        low[j][l] = at < 32 ? at : 0;
        high[j][l] = at < 32 ? l : 16 + at - 32;
      }
  }
};
static constexpr EveryThird kEveryThird;

struct Lanes {
  __m512i code;
  __mmask16 good;
};

// Add a coordinate of sixteen voxels to their places, and leave out those beyond the window.
static inline void add_axis(const Reach& reach, uint32_t coordinate_mask, int j, __m512i voxel, Lanes& to) {
  const __m512i at = _mm512_add_epi32(voxel, _mm512_set1_epi32(int32_t(kBias)));
  const __m512i above = _mm512_sub_epi32(at, _mm512_set1_epi32(int32_t(reach.least[j])));
  to.good &= _mm512_cmple_epu32_mask(above, _mm512_set1_epi32(int32_t(reach.most[j] - reach.least[j])));
  const __m512i cell = _mm512_and_si512(at, _mm512_set1_epi32(int32_t(coordinate_mask)));
  to.code = _mm512_or_si512(to.code, _mm512_slli_epi32(cell, unsigned(kAxisBits * j)));
}

static inline Lanes exactly(const Scan& scan, const Reach& reach, uint32_t coordinate_mask, const __m512 x[3]) {
  Lanes to{_mm512_setzero_si512(), 0xffff};
  __m512d distance[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  for (int j = 0; j < 3; ++j) {
    __m256i cell[2];
    for (int h = 0; h < 2; ++h) {
      const __m512d metres = _mm512_cvtps_pd(h ? _mm512_extractf32x8_ps(x[j], 1) : _mm512_castps512_ps256(x[j]));
      const __m512d apart = _mm512_sub_pd(metres, _mm512_set1_pd(scan.origin[j]));
      distance[h] = _mm512_add_pd(distance[h], _mm512_mul_pd(apart, apart));
      const __m512d voxels = _mm512_mul_pd(metres, _mm512_set1_pd(scan.inverse));
      cell[h] = _mm512_cvt_roundpd_epi32(voxels, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    }
    add_axis(reach, coordinate_mask, j, _mm512_inserti64x4(_mm512_castsi256_si512(cell[0]), cell[1], 1), to);
  }
  const __m512d limit = _mm512_set1_pd(scan.max_range * scan.max_range);
  to.good &= __mmask16(_mm512_cmp_pd_mask(distance[0], limit, _CMP_LE_OQ) |
                       _mm512_cmp_pd_mask(distance[1], limit, _CMP_LE_OQ) << 8);
  return to;
}

static inline uint32_t place_points(const Scan& scan, const Reach& reach, const Quick& quick,
                                    uint32_t coordinate_mask, const float* p, uint32_t* place, int& count) {
  constexpr int kAhead = 1024;  // numbers that are on their way from memory
  for (int line = 0; line < 48; line += 16) _mm_prefetch(reinterpret_cast<const char*>(p + kAhead + line), _MM_HINT_T0);
  const __m512 first = _mm512_loadu_ps(p), second = _mm512_loadu_ps(p + 16), third = _mm512_loadu_ps(p + 32);
  Lanes to{_mm512_setzero_si512(), 0xffff};
  __m512 x[3], distance = _mm512_setzero_ps();
  __mmask16 unsafe = quick.usable ? 0 : 0xffff;
  for (int j = 0; j < 3; ++j) {
    x[j] = _mm512_permutex2var_ps(_mm512_permutex2var_ps(first, _mm512_load_si512(kEveryThird.low[j]), second),
                                  _mm512_load_si512(kEveryThird.high[j]), third);
    const __m512 voxels = _mm512_mul_ps(x[j], _mm512_set1_ps(quick.inverse));
    const __m512 floor = _mm512_roundscale_ps(voxels, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512 fraction = _mm512_sub_ps(_mm512_sub_ps(voxels, floor), _mm512_set1_ps(0.5f));
    unsafe |= _mm512_cmp_ps_mask(_mm512_abs_ps(fraction), _mm512_set1_ps(quick.middle), _CMP_GT_OQ);
    add_axis(reach, coordinate_mask, j, _mm512_cvttps_epi32(floor), to);
    if (!quick.limited) continue;
    const __m512 apart = _mm512_sub_ps(x[j], _mm512_set1_ps(quick.origin[j]));
    distance = _mm512_fmadd_ps(apart, apart, distance);
  }
  if (quick.limited) {
    const __m512 beyond = _mm512_sub_ps(distance, _mm512_set1_ps(quick.square));
    unsafe |= _mm512_cmp_ps_mask(_mm512_abs_ps(beyond), _mm512_set1_ps(quick.slack), _CMP_LE_OQ);
    to.good &= _mm512_cmp_ps_mask(beyond, _mm512_setzero_ps(), _CMP_LT_OQ);
  }
  if (unsafe) to = exactly(scan, reach, coordinate_mask, x);
  const __mmask16 change = _mm512_cmpneq_epu32_mask(to.code, _mm512_alignr_epi32(to.code, to.code, 15));
  const __mmask16 kept = to.good & (change | __mmask16(~(to.good << 1)));
  _mm512_storeu_si512(place + count, _mm512_maskz_compress_epi32(kept, to.code));
  count += __builtin_popcount(kept);
  return uint16_t(~to.good);
}

// From coordinates side by side to codes; `place` has room for a multiple of sixteen.
static inline void spread_places(uint32_t* place, int count) {
  const __m512i bits = _mm512_set1_epi32((1 << kAxisBits) - 1);
  for (int i = 0; i < count; i += kLanes) {
    const __m512i at = _mm512_loadu_si512(place + i);
    const __m512i x = spread_lanes(_mm512_and_si512(at, bits));
    const __m512i y = spread_lanes(_mm512_and_si512(_mm512_srli_epi32(at, kAxisBits), bits));
    const __m512i z = spread_lanes(_mm512_srli_epi32(at, 2 * kAxisBits));
    const __m512i code = _mm512_ternarylogic_epi32(x, _mm512_slli_epi32(y, 1), _mm512_slli_epi32(z, 2), 0xfe);
    _mm512_storeu_si512(place + i, code);
  }
}
#else
static inline uint32_t place_points(const Scan& scan, const Reach& reach, const Quick& quick,
                                    uint32_t coordinate_mask, const float* p, uint32_t* place, int& count) {
  uint32_t code[kLanes] = {}, good[kLanes], unsafe = !quick.usable;
  float distance[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) good[l] = 1;
  for (int j = 0; j < 3; ++j) {
    const int32_t least = int32_t(reach.least[j]), span = int32_t(reach.most[j] - reach.least[j]);
    const float low = float(least - kBias);
    for (int l = 0; l < kLanes; ++l) {
      const float x = p[3 * l + j], voxels = x * quick.inverse, floor = std::floor(voxels);
      unsafe |= std::abs(voxels - floor - 0.5f) > quick.middle;
      const float above = floor - low, apart = x - quick.origin[j];
      distance[l] += apart * apart;
      const bool inside = above >= 0 && above <= float(span);
      good[l] &= inside;
      code[l] |= (uint32_t(int32_t(inside ? above : 0) + least) & coordinate_mask) << kAxisBits * j;
    }
  }
  if (quick.limited)
    for (int l = 0; l < kLanes; ++l) {
      const float beyond = distance[l] - quick.square;
      unsafe |= std::abs(beyond) <= quick.slack;
      good[l] &= beyond < 0;
    }
  if (unsafe) {
    double square[kLanes] = {};
    for (int l = 0; l < kLanes; ++l) good[l] = 1, code[l] = 0;
    for (int j = 0; j < 3; ++j) {
      const int32_t least = int32_t(reach.least[j]), span = int32_t(reach.most[j] - reach.least[j]);
      for (int l = 0; l < kLanes; ++l) {
        const double metres = double(p[3 * l + j]), apart = metres - scan.origin[j];
        square[l] += apart * apart;
        const double above = std::floor(metres * scan.inverse) - double(least - kBias);
        const bool inside = above >= 0 && above <= double(span);
        good[l] &= inside;
        code[l] |= (uint32_t(int32_t(inside ? above : 0) + least) & coordinate_mask) << kAxisBits * j;
      }
    }
    const double limit = scan.max_range * scan.max_range;
    for (int l = 0; l < kLanes; ++l) good[l] &= square[l] <= limit;
  }
  uint32_t others = 0;
  for (int l = 0; l < kLanes; ++l) {
    place[count] = code[l];
    count += good[l] && !(l && good[l - 1] && code[l] == code[l - 1]);
    others |= uint32_t(!good[l]) << l;
  }
  return others;
}

static inline void spread_places(uint32_t* place, int count) {
  constexpr uint32_t bits = (1 << kAxisBits) - 1;
  for (int i = 0; i < count; ++i)
    place[i] = spread_small(place[i] & bits) | spread_small(place[i] >> kAxisBits & bits) << 1 |
               spread_small(place[i] >> 2 * kAxisBits) << 2;
}
#endif

}  // namespace vox
