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

inline double square_distance(const Scan& scan, const double at[3]) {
  const double x = at[0] - scan.origin[0], y = at[1] - scan.origin[1], z = at[2] - scan.origin[2];
  return x * x + y * y + z * z;
}

// Places of the points that lie within range and in the window, packed; the others need a closer
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

static inline uint32_t place_points(const Scan& scan, const Reach& reach, uint32_t coordinate_mask, const float* p,
                                    uint32_t* place, int& count) {
  const __m512 first = _mm512_loadu_ps(p), second = _mm512_loadu_ps(p + 16), third = _mm512_loadu_ps(p + 32);
  __m512i code = _mm512_setzero_si512();
  __m512d distance[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  __mmask16 good = 0xffff;
  for (int j = 0; j < 3; ++j) {
    const __m512 x = _mm512_permutex2var_ps(
        _mm512_permutex2var_ps(first, _mm512_load_si512(kEveryThird.low[j]), second),
        _mm512_load_si512(kEveryThird.high[j]), third);
    __m256i cell[2];
    for (int h = 0; h < 2; ++h) {
      const __m512d metres = _mm512_cvtps_pd(h ? _mm512_extractf32x8_ps(x, 1) : _mm512_castps512_ps256(x));
      const __m512d apart = _mm512_sub_pd(metres, _mm512_set1_pd(scan.origin[j]));
      distance[h] = _mm512_add_pd(distance[h], _mm512_mul_pd(apart, apart));
      const __m512d voxels = _mm512_mul_pd(metres, _mm512_set1_pd(scan.inverse));
      cell[h] = _mm512_cvt_roundpd_epi32(voxels, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    }
    __m512i at = _mm512_inserti64x4(_mm512_castsi256_si512(cell[0]), cell[1], 1);
    at = _mm512_add_epi32(at, _mm512_set1_epi32(int32_t(kBias)));
    const __m512i above = _mm512_sub_epi32(at, _mm512_set1_epi32(int32_t(reach.least[j])));
    good &= _mm512_cmple_epu32_mask(above, _mm512_set1_epi32(int32_t(reach.most[j] - reach.least[j])));
    at = spread_lanes(_mm512_and_si512(at, _mm512_set1_epi32(int32_t(coordinate_mask))));
    code = _mm512_or_si512(code, _mm512_slli_epi32(at, unsigned(j)));
  }
  const __m512d limit = _mm512_set1_pd(scan.max_range * scan.max_range);
  good &= __mmask16(_mm512_cmp_pd_mask(distance[0], limit, _CMP_LE_OQ) |
                    _mm512_cmp_pd_mask(distance[1], limit, _CMP_LE_OQ) << 8);
  _mm512_storeu_si512(place + count, _mm512_maskz_compress_epi32(good, code));
  count += __builtin_popcount(good);
  return uint16_t(~good);
}
#else
static inline uint32_t place_points(const Scan& scan, const Reach& reach, uint32_t coordinate_mask, const float* p,
                                    uint32_t* place, int& count) {
  uint32_t code[kLanes] = {}, good[kLanes];
  double distance[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) good[l] = 1;
  for (int j = 0; j < 3; ++j) {
    const int32_t least = int32_t(reach.least[j]), span = int32_t(reach.most[j] - reach.least[j]);
    for (int l = 0; l < kLanes; ++l) {
      const double metres = double(p[3 * l + j]), apart = metres - scan.origin[j];
      distance[l] += apart * apart;
      const double above = std::floor(metres * scan.inverse) - double(least - kBias);
      const bool inside = above >= 0 && above <= double(span);
      good[l] &= inside;
      const uint32_t at = uint32_t(int32_t(inside ? above : 0) + least);
      code[l] |= spread_small(at & coordinate_mask) << j;
    }
  }
  const double limit = scan.max_range * scan.max_range;
  uint32_t others = 0;
  for (int l = 0; l < kLanes; ++l) {
    const bool near = good[l] && distance[l] <= limit;
    place[count] = code[l];
    count += near;
    others |= uint32_t(!near) << l;
  }
  return others;
}
#endif

}  // namespace vox
