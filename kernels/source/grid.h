// Where a voxel lies: fixed-point coordinates, Morton codes and block keys. Integers throughout, so
// that every compiler, instruction set and device computes the same voxel.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__BMI2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#ifdef __CUDACC__
#define VOX_BOTH __host__ __device__ __forceinline__
#else
#define VOX_BOTH inline
#endif

namespace vox {

// A voxel's integer coordinate has 19 bits per axis, biased so that it is never negative; a block is
// 8 x 8 x 8 voxels; a key is world << 48 | Morton code of the block's three 16-bit coordinates.
constexpr int kVoxelBits = 19, kBlockBits = kVoxelBits - 3, kKeyBits = 3 * kBlockBits;
constexpr int64_t kBias = int64_t{1} << (kVoxelBits - 1);
constexpr int64_t kWorlds = int64_t{1} << (63 - kKeyBits);
constexpr int kCells = 512;
constexpr int64_t kEmpty = -1;  // no key
constexpr int8_t kUnknown = -128;  // no log-odds

// Fixed point: 30 bits after the point. Sums of slopes are exact, so the cell that a ray is in after
// k slabs is the same whether it was reached step by step or at once.
constexpr int kFraction = 30;
constexpr int64_t kOne = int64_t{1} << kFraction;
constexpr int64_t kMirror = (int64_t{1} << (kVoxelBits + kFraction)) - 1;

struct Fixed {
  int64_t v[3];
};

// Whether a coordinate, in voxels, lies on the grid; false for NaN.
VOX_BOTH bool on_grid(double x) { return x >= -double(kBias) && x < double(kBias); }

VOX_BOTH int64_t to_fixed(double x) {  // x in voxels, on the grid
  return int64_t(floor(x * double(kOne))) + (kBias << kFraction);
}

VOX_BOTH uint64_t spread(uint64_t x) {  // put two zeros between the bits of a 21-bit number
#if defined(__BMI2__) && !defined(__CUDACC__)
  return _pdep_u64(x, 0x1249249249249249ull);
#endif
  x = (x | x << 32) & 0x001f00000000ffffull;
  x = (x | x << 16) & 0x001f0000ff0000ffull;
  x = (x | x << 8) & 0x100f00f00f00f00full;
  x = (x | x << 4) & 0x10c30c30c30c30c3ull;
  return (x | x << 2) & 0x1249249249249249ull;
}

VOX_BOTH uint64_t unspread(uint64_t x) {
#if defined(__BMI2__) && !defined(__CUDACC__)
  return _pext_u64(x, 0x1249249249249249ull);
#endif
  x &= 0x1249249249249249ull;
  x = (x | x >> 2) & 0x10c30c30c30c30c3ull;
  x = (x | x >> 4) & 0x100f00f00f00f00full;
  x = (x | x >> 8) & 0x001f0000ff0000ffull;
  x = (x | x >> 16) & 0x001f00000000ffffull;
  return (x | x >> 32) & 0x1fffffull;
}

VOX_BOTH uint64_t morton(uint64_t x, uint64_t y, uint64_t z) {
  return spread(x) | spread(y) << 1 | spread(z) << 2;
}

// The world, in the key's highest bits, counts in the lowest ones too: many small worlds differ in
// nothing else.
VOX_BOTH uint64_t hash(uint64_t key) {
  key = (key ^ key >> 31) * 0x9e3779b97f4a7c15ull;
  return key ^ key >> 32;
}

VOX_BOTH int popcount(uint64_t x) {
#ifdef __CUDA_ARCH__
  return __popcll(x);
#else
  return __builtin_popcountll(x);
#endif
}

VOX_BOTH int lowest(uint32_t x) {  // the place of the lowest bit; x is not 0
#ifdef __CUDA_ARCH__
  return __ffs(int(x)) - 1;
#else
  return __builtin_ctz(x);
#endif
}

}  // namespace vox
