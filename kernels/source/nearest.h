// Occupied voxels near points: the k nearest, and those within a radius. Distances are between the
// point and the voxels' centres, in voxels, squared, float64: x² + y² + z² in this order.
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

// Squared distances of a coordinate to the centres of `count` voxels in a row.
VOX_BOTH void squares(double at, int64_t first, int count, double* out) {
  for (int i = 0; i < count; ++i) {
    const double d = at - (double(first + i) + 0.5);
    out[i] = d * d;
  }
}

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

// Where the block of a slot lies; false where it is of another world.
VOX_BOTH bool place(const View& map, const Query& q, int64_t slot, int64_t at[3]) {
  if (map.keys[slot] >> kKeyBits != q.world) return false;
  const uint64_t code = uint64_t(map.keys[slot]) & ((uint64_t{1} << kKeyBits) - 1);
  for (int j = 0; j < 3; ++j) at[j] = int64_t(unspread(code >> j));
  return true;
}

// Call visit(distance, code) for the occupied voxels of a block's word that are as near as `limit()`.
// Eight at a time, the octants of the word: their distances are sums of three vectors.
template <class Limit, class Visit>
VOX_BOTH void each_voxel(const Query& q, const Block& block, int word, uint64_t bits, const Limit& limit,
                       const Visit& visit) {
  double axis[3][2][8];  // squared distances along an axis, of both halves of the word
  for (int j = 0; j < 3; ++j) {
    double square[4];
    squares(q.at[j], block.cell[j] + (word >> j & 1) * 4, 4, square);
    for (int half = 0; half < 2; ++half)
      for (int l = 0; l < 8; ++l) axis[j][half][l] = square[2 * half + (l >> j & 1)];
  }
  for (int octant = 0; octant < 8; ++octant) {
    const uint32_t here = uint32_t(bits >> 8 * octant & 255);
    if (!here) continue;
    const double *x = axis[0][octant & 1], *y = axis[1][octant >> 1 & 1], *z = axis[2][octant >> 2];
    alignas(64) double d[8];
    uint32_t near = 0;
    const double most = limit();
    for (int l = 0; l < 8; ++l) d[l] = x[l] + y[l] + z[l];
#ifdef __AVX512F__
    near = _mm512_cmp_pd_mask(_mm512_load_pd(d), _mm512_set1_pd(most), _CMP_LE_OQ);
#else
    for (int l = 0; l < 8; ++l) near |= uint32_t(d[l] <= most) << l;
#endif
    for (near &= here; near; near &= near - 1) {
      const int l = lowest(near);
      visit(d[l], block.code << 9 | word << 6 | octant << 3 | l);
    }
  }
}

VOX_BOTH double word_least(const Query& q, const Block& block, int word) {
  double d = 0;
  for (int j = 0; j < 3; ++j) d += least(q.at[j], block.cell[j] + (word >> j & 1) * 4, 4);
  return d;
}

// Least distance of the blocks in ring r around the query's, Chebyshev.
VOX_BOTH double ring_least(const Query& q, int64_t r) {
  double d = std::numeric_limits<double>::infinity();
  for (int j = 0; j < 3; ++j) {
    const double low = q.at[j] - double(8 * (q.block[j] - r + 1)), high = double(8 * (q.block[j] + r)) - q.at[j];
    d = std::min(d, std::min(low, high) + 0.5);
  }
  return d * d;
}

class Nearest {
 public:
  // `best` has room for k.
  VOX_BOTH Nearest(const View& map, int64_t k, double limit, Found* best)
      : map_(map), k_(k), limit_(limit), best_(best) {}

  // The k nearest within the limit, sorted; their number.
  VOX_BOTH int64_t run(const Query& q) {
    count_ = 0;
    for (int64_t r = 0; r == 0 || ring_least(q, r) <= worst(); ++r) {
      if ((2 * r + 1) * (2 * r + 1) * (2 * r + 1) > *map_.count + 27) {  // far from everything
        all(q);
        break;
      }
      ring(q, r);
    }
    return count_;
  }

 private:
  VOX_BOTH double worst() const { return count_ < k_ ? limit_ : best_[k_ - 1].distance; }

  // Visit every block of the map instead.
  VOX_BOTH void all(const Query& q) {
    count_ = 0;
    for (int64_t slot = 0; slot < *map_.count; ++slot) {
      int64_t at[3];
      if (place(map_, q, slot, at)) consider(q, at);
    }
  }

  // Visit the blocks at Chebyshev distance r. Squared distances of whole planes and rows of blocks
  // pass over most of them.
  VOX_BOTH void ring(const Query& q, int64_t r) {
    for (int64_t z = -r; z <= r; ++z) {
      const double plane = least(q.at[2], 8 * (q.block[2] + z), 8);
      if (!(plane <= worst())) continue;
      for (int64_t y = -r; y <= r; ++y) {
        const double row = least(q.at[1], 8 * (q.block[1] + y), 8);
        if (!(row + plane <= worst())) continue;
        const bool shell = z == -r || z == r || y == -r || y == r;
        for (int64_t x = -r; x <= r; x += shell || r == 0 ? 1 : 2 * r) {
          if (!(least(q.at[0], 8 * (q.block[0] + x), 8) + row + plane <= worst())) continue;
          const int64_t at[3] = {q.block[0] + x, q.block[1] + y, q.block[2] + z};
          Block block;
          if (load(map_, q, at, block)) visit(q, block);
        }
      }
    }
  }

  VOX_BOTH void consider(const Query& q, const int64_t at[3]) {
    double d = 0;
    for (int j = 0; j < 3; ++j) d += least(q.at[j], 8 * at[j], 8);
    Block block;
    if (d <= worst() && load(map_, q, at, block)) visit(q, block);
  }

  VOX_BOTH void visit(const Query& q, const Block& block) {
    const uint64_t* occupied = map_.occupied + block.slot * 8;
    int here = 0;  // the word that is nearest goes first: it narrows the search
    for (int j = 0; j < 3; ++j) here |= int(q.at[j] >= double(block.cell[j] + 4)) << j;
    for (int i = 0; i < 8; ++i) {
      const int word = here ^ i;
      if (!occupied[word] || !(word_least(q, block, word) <= worst())) continue;
      each_voxel(q, block, word, occupied[word], [&] { return worst(); },
                 [&](double d, int64_t code) { add({d, code}); });
    }
  }

  VOX_BOTH void add(const Found& found) {
    if (count_ == k_ && !(found < best_[k_ - 1])) return;
    int64_t i = count_ < k_ ? count_++ : k_ - 1;
    for (; i && found < best_[i - 1]; --i) best_[i] = best_[i - 1];
    best_[i] = found;
  }

  const View& map_;
  const int64_t k_;
  const double limit_;
  Found* best_;
  int64_t count_ = 0;
};

// Call block(b, inside) for the map's blocks that a ball touches; `inside` where it holds them.
template <class Visit>
VOX_BOTH void each_block(const View& map, const Query& q, double radius, const Visit& visit) {
  int64_t low[3], high[3];
  for (int j = 0; j < 3; ++j) {
    low[j] = int64_t(std::floor((std::max(q.at[j] - radius, 0.0)) / 8));
    high[j] = int64_t(std::floor(std::min(q.at[j] + radius, double(2 * kBias - 1)) / 8));
  }
  const double square = radius * radius;
  const auto consider = [&](const int64_t at[3]) {
    double near = 0, far = 0;
    for (int j = 0; j < 3; ++j) near += least(q.at[j], 8 * at[j], 8), far += most(q.at[j], 8 * at[j], 8);
    Block block;
    if (near <= square && load(map, q, at, block)) visit(block, far <= square);
  };
  const double volume = double(high[0] - low[0] + 1) * double(high[1] - low[1] + 1) * double(high[2] - low[2] + 1);
  if (volume <= double(*map.count)) {
    for (int64_t z = low[2]; z <= high[2]; ++z)
      for (int64_t y = low[1]; y <= high[1]; ++y)
        for (int64_t x = low[0]; x <= high[0]; ++x) {
          const int64_t at[3] = {x, y, z};
          consider(at);
        }
    return;
  }
  for (int64_t slot = 0; slot < *map.count; ++slot) {  // the ball is larger than the map
    int64_t at[3];
    if (place(map, q, slot, at)) consider(at);
  }
}

VOX_BOTH int64_t count_within(const View& map, const Query& q, double radius) {
  const double square = radius * radius;
  int64_t total = 0;
  each_block(map, q, radius, [&](const Block& block, bool inside) {
    const uint64_t* occupied = map.occupied + block.slot * 8;
    for (int word = 0; word < 8; ++word) {
      if (!occupied[word]) continue;
      double far = 0;
      for (int j = 0; j < 3; ++j) far += most(q.at[j], block.cell[j] + (word >> j & 1) * 4, 4);
      if (inside || far <= square) {
        total += popcount(occupied[word]);
      } else if (word_least(q, block, word) <= square) {
        each_voxel(q, block, word, occupied[word], [&] { return square; },
                   [&](double, int64_t) { ++total; });
      }
    }
  });
  return total;
}

// Metres, and integer coordinates as users count them.
VOX_BOTH void write(const Found& found, double voxel_size, float* metres, int32_t* voxel) {
  *metres = float(std::sqrt(found.distance) * voxel_size);
  for (int j = 0; j < 3; ++j) voxel[j] = int32_t(int64_t(unspread(uint64_t(found.code) >> j)) - kBias);
}

VOX_BOTH bool query_at(const float* point, int64_t world, double inverse, Query& q) {
  for (int j = 0; j < 3; ++j) {
    const double x = double(point[j]) * inverse;
    if (!on_grid(x)) return false;
    q.at[j] = x + double(kBias);
    q.block[j] = (int64_t(std::floor(x)) + kBias) >> 3;
  }
  q.world = world;
  return true;
}

// Points, the worlds that are asked, and how far; [count, 3] in metres.
struct NearJob {
  View map;
  const float* points;
  const int64_t* worlds;  // of each point, or null: one for all
  int64_t world;
  double voxel_size;

  VOX_BOTH bool query(int64_t i, Query& q) const {
    return query_at(points + 3 * i, worlds ? worlds[i] : world, 1 / voxel_size, q);
  }

  // The k nearest within `limit` voxels, nearest first, ties by code: distances in metres, infinite,
  // and coordinates, the grid's least, where there are fewer.
  VOX_BOTH void nearest(int64_t i, int64_t k, double limit, Found* best, float* metres, int32_t* voxel) const {
    const Found none{std::numeric_limits<double>::infinity(), 0};
    Query q;
    Nearest search(map, k, limit * limit, best);
    const int64_t found = query(i, q) ? search.run(q) : 0;
    for (int64_t n = 0; n < k; ++n)
      write(n < found ? best[n] : none, voxel_size, metres + i * k + n, voxel + 3 * (i * k + n));
  }

  // How many occupied voxels lie within `radius` voxels.
  VOX_BOTH int64_t count(int64_t i, double radius) const {
    Query q;
    return query(i, q) ? count_within(map, q, radius) : 0;
  }
};

}  // namespace vox
