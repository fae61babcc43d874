// How far points are from the voxels of a block: between the point and their centres, in voxels,
// squared, float64: x² + y² + z² in this order. Eight at a time, the octants of a cube of 4 x 4 x 4.
#pragma once
#include <algorithm>
#include <limits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "map.h"

namespace vox {

struct Found {
  double distance;  // squared
  int64_t code;
  VOX_BOTH bool operator<(const Found& other) const {
    return distance < other.distance || (distance == other.distance && code < other.code);
  }
};

// A place in voxels, biased as codes are, and the block that holds it.
struct Query {
  double at[3];
  int64_t block[3];
  int64_t world;
};

// To the nearest and the farthest centre among voxels first ... first + count - 1 of one axis.
VOX_BOTH double least(double at, int64_t first, int count) {
  const double below = double(first) + 0.5 - at, above = at - (double(first + count - 1) + 0.5);
  const double d = below > 0 ? below : above > 0 ? above : 0;
  return d * d;
}
VOX_BOTH double most(double at, int64_t first, int count) {
  const double below = at - (double(first) + 0.5), above = double(first + count - 1) + 0.5 - at;
  const double d = below > above ? below : above;
  return d * d;
}

struct Block {
  int64_t slot, code;   // of the block, without its world
  int64_t cell[3];      // its least voxel
};

VOX_BOTH bool load(const View& map, const Query& q, const int64_t block[3], Block& to) {
  for (int j = 0; j < 3; ++j)
    if (block[j] < 0 || block[j] >> kBlockBits) return false;
  to.code = int64_t(morton(uint64_t(block[0]), uint64_t(block[1]), uint64_t(block[2])));
  to.slot = find(map, q.world << kKeyBits | to.code);
  for (int j = 0; j < 3; ++j) to.cell[j] = 8 * block[j];
  return to.slot >= 0;
}

// Where the block of a slot lies.
VOX_BOTH void place(const View& map, int64_t slot, int64_t at[3]) {
  const uint64_t code = uint64_t(map.keys[slot]) & ((uint64_t{1} << kKeyBits) - 1);
  for (int j = 0; j < 3; ++j) at[j] = int64_t(unspread(code >> j));
}

// Squared distances along each axis: to the eight centres of a block, and to the nearest and the
// farthest of either half of them.
struct Apart {
#ifdef __AVX512F__
  __m512d square[3];
#else
  double square[3][8];
#endif
  double least[3][2], most[3][2];

  VOX_BOTH Apart(const Query& q, const Block& block) {
    for (int j = 0; j < 3; ++j) {
#ifdef __AVX512F__
      const __m512d centre = _mm512_add_pd(_mm512_set1_pd(double(block.cell[j])),
                                           _mm512_setr_pd(0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5));
      const __m512d d = _mm512_sub_pd(_mm512_set1_pd(q.at[j]), centre);
      square[j] = _mm512_mul_pd(d, d);
#else
      for (int i = 0; i < 8; ++i) {
        const double d = q.at[j] - (double(block.cell[j]) + (i + 0.5));
        square[j][i] = d * d;
      }
#endif
      for (int half = 0; half < 2; ++half) {
        least[j][half] = vox::least(q.at[j], block.cell[j] + 4 * half, 4);
        most[j][half] = vox::most(q.at[j], block.cell[j] + 4 * half, 4);
      }
    }
  }
  // Of a word, a cube of 4 x 4 x 4.
  VOX_BOTH double word_least(int word) const {
    return least[0][word & 1] + least[1][word >> 1 & 1] + least[2][word >> 2];
  }
  VOX_BOTH double word_most(int word) const {
    return most[0][word & 1] + most[1][word >> 1 & 1] + most[2][word >> 2];
  }
};

// A bit for each byte that is not 0.
VOX_BOTH uint32_t nonzero_bytes(uint64_t x) {
#ifdef __AVX512F__
  return _mm_test_epi8_mask(_mm_cvtsi64_si128(int64_t(x)), _mm_set1_epi8(-1)) & 255;
#else
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= uint32_t((x >> 8 * i & 255) != 0) << i;
  return bits;
#endif
}

// Call visit(near, distances, octant, corner) for the octants of a block's word: a bit for each of
// its eight occupied voxels that is as near as `limit()`, some bit at least, and their distances.
template <class Limit, class Visit>
VOX_BOTH void each_octant(const Apart& apart, int word, uint64_t bits, const Limit& limit, const Visit& visit) {
  for (uint32_t octants = nonzero_bytes(bits); octants; octants &= octants - 1) {
    const int octant = lowest(octants);
    const uint32_t here = uint32_t(bits >> 8 * octant & 255);
    alignas(64) double d[8];
    uint32_t near = 0;
    const double most = limit();
    int corner[3];  // of the octant, in the block
    for (int j = 0; j < 3; ++j) corner[j] = 4 * (word >> j & 1) + 2 * (octant >> j & 1);
#ifdef __AVX512F__
    const __m512i lane[3] = {_mm512_setr_epi64(0, 1, 0, 1, 0, 1, 0, 1), _mm512_setr_epi64(0, 0, 1, 1, 0, 0, 1, 1),
                             _mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1)};
    __m512d part[3];
    for (int j = 0; j < 3; ++j)
      part[j] = _mm512_permutexvar_pd(_mm512_add_epi64(lane[j], _mm512_set1_epi64(corner[j])), apart.square[j]);
    const __m512d sum = _mm512_add_pd(_mm512_add_pd(part[0], part[1]), part[2]);
    near = here & _mm512_cmp_pd_mask(sum, _mm512_set1_pd(most), _CMP_LE_OQ);
    if (!near) continue;
    _mm512_store_pd(d, sum);
#else
    for (int l = 0; l < 8; ++l) {
      d[l] = apart.square[0][corner[0] + (l & 1)] + apart.square[1][corner[1] + (l >> 1 & 1)] +
             apart.square[2][corner[2] + (l >> 2)];
      near |= uint32_t(d[l] <= most) << l;
    }
    near &= here;
    if (!near) continue;
#endif
    visit(near, d, octant, corner);
  }
}

// Call visit(distance, code) for the occupied voxels of a block's word that are as near as `limit()`.
template <class Limit, class Visit>
VOX_BOTH void each_voxel(const Apart& apart, const Block& block, int word, uint64_t bits, const Limit& limit,
                         const Visit& visit) {
  each_octant(apart, word, bits, limit, [&](uint32_t near, const double* d, int octant, const int*) {
    for (; near; near &= near - 1) {
      const int l = lowest(near);
      visit(d[l], block.code << 9 | word << 6 | octant << 3 | l);
    }
  });
}

}  // namespace vox
