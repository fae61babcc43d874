// Marking a ray in the window, sixteen slabs at a time. Compiled once per instruction set.
#pragma once
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "ray.h"
#include "scratch.h"

namespace vox {

constexpr int kLanes = 16;

#ifdef __AVX512F__
// Places to be stored to, so that lanes that agree are stored once and no branch depends on them.
struct Queue {
  static constexpr int kRoom = 2048;
  alignas(64) uint32_t place[kRoom + 4 * kLanes];
  int size = 0;

  void push(__m512i places, __mmask16 which) {
    _mm512_storeu_si512(place + size, _mm512_maskz_compress_epi32(which, places));
    size += __builtin_popcount(which);
  }
  void flush(uint8_t* to) {
    for (int i = 0; i < size; ++i) to[place[i]] = kFree;
    size = 0;
  }
  void flush_if_full(uint8_t* to) {
    if (size > kRoom) flush(to);
  }
};
#endif

struct Marker {  // where to mark
#ifdef __AVX512F__
  Queue *queue, *blocks;
#endif
  uint8_t *cells, *touched;
  uint32_t mask;             // of the window's codes
  const uint32_t* dilated;   // codes of the window's coordinates on axis 0, then 16 more
  uint32_t coordinate_mask;  // of the window's coordinates

  void mark(uint32_t code, uint8_t value) const {
    cells[code] = value;
    touched[code >> 9] = 1;
  }
  uint8_t* block(uint64_t key) const {  // to be marked
    touched[key & (mask >> 9)] = 1;
    return cells + ((key << 9) & mask);
  }
};

constexpr uint32_t kDilated = 0x09249249;  // the bits of axis 0 in a window's code

static inline uint32_t spread_small(uint32_t x) {  // 10 bits
  x = (x | x << 16) & 0x030000ff;
  x = (x | x << 8) & 0x0300f00f;
  x = (x | x << 4) & 0x030c30c3;
  return (x | x << 2) & 0x09249249;
}

// Where sixteen slabs are entered and left, and the voxel between, as codes of the window.
struct Slabs {
  alignas(64) uint32_t enter[kLanes], leave[kLanes], between[kLanes];
  uint32_t moved;  // bit l: slab l touches a block that slab l - 1 was not entered in
};

#ifdef __AVX512F__

static inline __m512i spread_lanes(__m512i x) {  // 10 bits each, by table: 5 and 5
  const __m512i low = _mm512_setr_epi32(0x000, 0x001, 0x008, 0x009, 0x040, 0x041, 0x048, 0x049,
                                        0x200, 0x201, 0x208, 0x209, 0x240, 0x241, 0x248, 0x249);
  const __m512i high = _mm512_or_si512(low, _mm512_set1_epi32(0x1000));
  const __m512i rest = _mm512_srli_epi32(x, 5);
  const __m512i bottom = _mm512_permutex2var_epi32(low, x, high);
  const __m512i top = _mm512_permutex2var_epi32(low, rest, high);
  return _mm512_or_si512(bottom, _mm512_slli_epi32(top, 15));
}

// Lanes of y, as fixed point: the fraction and the code of the voxel, now and at the slab's end.
struct Across {
  __m512i fraction, enter, leave;
  __mmask16 crosses;
};

static inline Across across(__m512i y_low, __m512i y_high, __m512i slope, __m512i coordinates) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i one = _mm512_set1_epi32(int32_t(kOne)), below = _mm512_set1_epi32(int32_t(kOne) - 1);
  const __m512i dilated = _mm512_set1_epi32(int32_t(kDilated));
  const __m512i low = _mm512_permutex2var_epi32(y_low, even, y_high);
  const __m512i high = _mm512_permutex2var_epi32(y_low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y_high);
  const __m512i cell = _mm512_and_si512(
      _mm512_or_si512(_mm512_srli_epi32(low, kFraction), _mm512_slli_epi32(high, 32 - kFraction)), coordinates);
  Across to;
  to.fraction = _mm512_and_si512(low, below);
  to.enter = spread_lanes(cell);
  to.crosses = _mm512_cmpge_epu32_mask(_mm512_add_epi32(to.fraction, slope), one);
  const __m512i next = _mm512_and_si512(_mm512_sub_epi32(to.enter, dilated), dilated);  // one further
  to.leave = _mm512_mask_mov_epi32(to.enter, to.crosses, next);
  return to;
}

static inline __m512i join(__m512i x, __m512i y, __m512i z, const __m128i shift[3], __m512i flip, __m512i mask) {
  y = _mm512_sll_epi32(y, shift[1]), z = _mm512_sll_epi32(z, shift[2]);
  const __m512i code = _mm512_ternarylogic_epi32(x, y, z, 0xfe);
  return _mm512_ternarylogic_epi32(code, flip, mask, 0x28);  // (code ^ flip) & mask
}

#endif

static void carve(const Marker& to, const Ray& ray, int begin, int end) {
  const int a = ray.axis[0], b = ray.axis[1], c = ray.axis[2];
  const uint32_t flip = ((ray.mirrored[0] ? kDilated << a : 0) | (ray.mirrored[1] ? kDilated << b : 0) |
                         (ray.mirrored[2] ? kDilated << c : 0)) & to.mask;
  const uint32_t start = uint32_t(ray.from[0] >> kFraction);
#ifdef __AVX512F__
  const __m128i shift[3] = {_mm_cvtsi32_si128(a), _mm_cvtsi32_si128(b), _mm_cvtsi32_si128(c)};
  const __m512i flips = _mm512_set1_epi32(int32_t(flip)), mask = _mm512_set1_epi32(int32_t(to.mask));
  const __m512i coordinates = _mm512_set1_epi32(int32_t(to.coordinate_mask));
  const __m512i lane = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i sy = _mm512_set1_epi32(int32_t(ray.slope[1])), sz = _mm512_set1_epi32(int32_t(ray.slope[2]));
  const __m512 fsy = _mm512_set1_ps(float(ray.slope[1])), fsz = _mm512_set1_ps(float(ray.slope[2]));
  const __m512i one = _mm512_set1_epi32(int32_t(kOne));
  const __m512i y_lane = _mm512_mullo_epi64(lane, _mm512_set1_epi64(ray.slope[1]));
  const __m512i z_lane = _mm512_mullo_epi64(lane, _mm512_set1_epi64(ray.slope[2]));
#endif
  for (int k = begin; k < end; k += kLanes) {
    const int64_t y0 = ray.first[1] + (k - 1) * ray.slope[1];
    const int64_t z0 = ray.first[2] + (k - 1) * ray.slope[2];
    const uint32_t* along = to.dilated + ((start + k) & to.coordinate_mask);
    Slabs s;
    const int count = end - k < kLanes ? end - k : kLanes;
#ifdef __AVX512F__
    const Across y = across(_mm512_add_epi64(y_lane, _mm512_set1_epi64(y0)),
                            _mm512_add_epi64(y_lane, _mm512_set1_epi64(y0 + 8 * ray.slope[1])), sy, coordinates);
    const Across z = across(_mm512_add_epi64(z_lane, _mm512_set1_epi64(z0)),
                            _mm512_add_epi64(z_lane, _mm512_set1_epi64(z0 + 8 * ray.slope[2])), sz, coordinates);
    const __m512 ry = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(one, y.fraction)), fsz);
    const __m512 rz = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(one, z.fraction)), fsy);
    const __mmask16 y_first = _mm512_cmp_ps_mask(ry, rz, _CMP_LT_OQ);
    const __m512i x = _mm512_sll_epi32(_mm512_loadu_si512(along), shift[0]);
    const __m512i enter = join(x, y.enter, z.enter, shift, flips, mask);
    const __m512i leave = join(x, y.leave, z.leave, shift, flips, mask);
    const __m512i between = join(x, _mm512_mask_mov_epi32(y.enter, y_first, y.leave),
                                 _mm512_mask_mov_epi32(z.leave, y_first, z.enter), shift, flips, mask);
    const __mmask16 live = __mmask16((1u << count) - 1);
    const __mmask16 left = live & (y.crosses | z.crosses), both = live & y.crosses & z.crosses;
    to.queue->push(enter, live), to.queue->push(leave, left), to.queue->push(between, both);
    const __m512i before = _mm512_alignr_epi32(enter, enter, 15), block = _mm512_set1_epi32(512);
    const __mmask16 moved = _mm512_cmpge_epu32_mask(_mm512_xor_si512(enter, before), block) | 1;
    const __mmask16 out = _mm512_cmpge_epu32_mask(_mm512_xor_si512(enter, leave), block);
    const __mmask16 aside = _mm512_cmpge_epu32_mask(_mm512_xor_si512(enter, between), block);
    to.blocks->push(_mm512_srli_epi32(enter, 9), live & moved);
    to.blocks->push(_mm512_srli_epi32(leave, 9), left & out);
    to.blocks->push(_mm512_srli_epi32(between, 9), both & aside);
    to.queue->flush_if_full(to.cells);
    to.blocks->flush_if_full(to.touched);
    continue;
#else
    const uint32_t sy = uint32_t(ray.slope[1]), sz = uint32_t(ray.slope[2]);
    const float fsy = float(sy), fsz = float(sz);
    uint32_t moved[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t y = uint64_t(y0 + l * ray.slope[1]), z = uint64_t(z0 + l * ray.slope[2]);
      const uint32_t one = uint32_t(kOne);
      const uint32_t fy = uint32_t(y) & (one - 1), fz = uint32_t(z) & (one - 1);
      const bool y_first = second_first(int32_t(fy), int32_t(fz), fsy, fsz);
      const uint32_t ye = spread_small(uint32_t(y >> kFraction) & to.coordinate_mask);
      const uint32_t ze = spread_small(uint32_t(z >> kFraction) & to.coordinate_mask);
      const uint32_t yl = fy + sy >= one ? (ye - kDilated) & kDilated : ye;
      const uint32_t zl = fz + sz >= one ? (ze - kDilated) & kDilated : ze;
      const uint32_t x = along[l] << a;
      s.enter[l] = ((x | ye << b | ze << c) ^ flip) & to.mask;
      s.leave[l] = ((x | yl << b | zl << c) ^ flip) & to.mask;
      s.between[l] = ((x | (y_first ? yl : ye) << b | (y_first ? ze : zl) << c) ^ flip) & to.mask;
      moved[l] = ((s.enter[l] ^ s.leave[l]) | (s.enter[l] ^ s.between[l])) >> 9;
    }
    s.moved = 1;
    for (int l = 1; l < count; ++l)
      s.moved |= uint32_t((moved[l] | ((s.enter[l] ^ s.enter[l - 1]) >> 9)) != 0) << l;
#endif
    for (int l = 0; l < count; ++l) {
      to.cells[s.enter[l]] = kFree;
      to.cells[s.leave[l]] = kFree;
      to.cells[s.between[l]] = kFree;
    }
    for (uint32_t rest = s.moved; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      to.touched[s.enter[l] >> 9] = 1;
      to.touched[s.leave[l] >> 9] = 1;
      to.touched[s.between[l] >> 9] = 1;
    }
  }
}

}  // namespace vox
