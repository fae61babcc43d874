// Occupied voxels near points: the k nearest, and those within a radius.
#pragma once
#include "apart.h"

namespace vox {

// Least distance of the blocks in ring r around the query's, Chebyshev.
VOX_BOTH double ring_least(const Query& q, int64_t r) {
  double d = std::numeric_limits<double>::infinity();
  for (int j = 0; j < 3; ++j) {
    const double low = q.at[j] - double(8 * (q.block[j] - r + 1)), high = double(8 * (q.block[j] + r)) - q.at[j];
    d = std::min(d, std::min(low, high) + 0.5);
  }
  return d * d;
}

// The k least found so far, sorted.
class Best {
 public:
  // `room` holds k.
  VOX_BOTH Best(int64_t k, double limit, Found* room) : k_(k), limit_(limit), best_(room) {}
  VOX_BOTH void clear() { count_ = 0; }
  VOX_BOTH int64_t count() const { return count_; }
  VOX_BOTH double worst() const { return count_ < k_ ? limit_ : best_[k_ - 1].distance; }
  VOX_BOTH void add(const Found& found) {
    if (count_ == k_ && !(found < best_[k_ - 1])) return;
    int64_t i = count_ < k_ ? count_++ : k_ - 1;
    for (; i && found < best_[i - 1]; --i) best_[i] = best_[i - 1];
    best_[i] = found;
  }

 private:
  const int64_t k_;
  const double limit_;
  Found* best_;
  int64_t count_ = 0;
};

#ifdef __AVX512F__
// Up to eight of them, in two registers: no branch depends on where a new one goes.
class BestEight {
 public:
  BestEight(int64_t k, double limit) : k_(int(k)), limit_(limit) { clear(); }
  void clear() {
    count_ = 0, worst_ = limit_;
    distance_ = _mm512_set1_pd(limit_), code_ = _mm512_set1_epi64(std::numeric_limits<int64_t>::max());
  }
  int64_t count() const { return count_ < k_ ? count_ : k_; }
  double worst() const { return worst_; }
  void add(const Found& found) {
    const __m512d d = _mm512_set1_pd(found.distance);
    const __m512i code = _mm512_set1_epi64(found.code);
    const __mmask8 tie = _mm512_cmp_pd_mask(distance_, d, _CMP_EQ_OQ) & _mm512_cmplt_epi64_mask(code_, code);
    const __mmask8 stay = _mm512_cmp_pd_mask(distance_, d, _CMP_LT_OQ) | tie;  // the first so many
    const __mmask8 here = __mmask8(stay << 1 | 1) ^ stay;
    const __m512i old = _mm512_castpd_si512(distance_);
    const __m512d moved = _mm512_castsi512_pd(_mm512_alignr_epi64(old, old, 7));
    distance_ = _mm512_mask_mov_pd(_mm512_mask_mov_pd(moved, stay, distance_), here, d);
    code_ = _mm512_mask_mov_epi64(_mm512_mask_mov_epi64(_mm512_alignr_epi64(code_, code_, 7), stay, code_), here, code);
    worst_ = _mm512_cvtsd_f64(_mm512_permutexvar_pd(_mm512_set1_epi64(k_ - 1), distance_));
    ++count_;
  }
  // Write metres, and codes, the last ones too where there are fewer: there is room for eight.
  void finish(double voxel_size, float metres[8], int64_t code[8]) const {
    const __m512d root = _mm512_mul_pd(_mm512_sqrt_pd(distance_), _mm512_set1_pd(voxel_size));
    _mm256_storeu_ps(metres, _mm512_cvtpd_ps(root));
    _mm512_storeu_si512(code, code_);
  }

 private:
  const int k_;
  const double limit_;
  __m512d distance_;
  __m512i code_;
  double worst_;
  int64_t count_;
};
#endif

template <class Best>
class Nearest {
 public:
  VOX_BOTH Nearest(const View& map, Best& best) : map_(map), best_(best) {}

  // The k nearest within the limit, sorted; their number.
  VOX_BOTH int64_t run(const Query& q) {
    best_.clear();
    const Blocks blocks(map_, q.world);
    if (!blocks.number()) return 0;
    for (int64_t r = 0; r == 0 || ring_least(q, r) <= best_.worst(); ++r) {
      if ((2 * r + 1) * (2 * r + 1) * (2 * r + 1) > blocks.number() + 27) {  // far from everything
        all(q, blocks);
        break;
      }
      ring(q, r);
    }
    return best_.count();
  }

 private:
  // Visit every block of the world instead.
  VOX_BOTH void all(const Query& q, const Blocks& blocks) {
    best_.clear();
    for (int64_t i = blocks.first; i < blocks.last; ++i) {
      int64_t at[3];
      place(map_, blocks.at(i), at);
      consider(q, at);
    }
  }

  // Visit the blocks at Chebyshev distance r. Squared distances of whole planes and rows of blocks
  // pass over most of them.
  VOX_BOTH void ring(const Query& q, int64_t r) {
    for (int64_t z = -r; z <= r; ++z) {
      const double plane = least(q.at[2], 8 * (q.block[2] + z), 8);
      if (!(plane <= best_.worst())) continue;
      for (int64_t y = -r; y <= r; ++y) {
        const double row = least(q.at[1], 8 * (q.block[1] + y), 8);
        if (!(row + plane <= best_.worst())) continue;
        const bool shell = z == -r || z == r || y == -r || y == r;
        for (int64_t x = -r; x <= r; x += shell || r == 0 ? 1 : 2 * r) {
          if (!(least(q.at[0], 8 * (q.block[0] + x), 8) + row + plane <= best_.worst())) continue;
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
    if (d <= best_.worst() && load(map_, q, at, block)) visit(q, block);
  }

  VOX_BOTH void visit(const Query& q, const Block& block) {
    const uint64_t* occupied = map_.occupied + block.slot * 8;
    const Apart apart(q, block);
    int here = 0;  // the word that is nearest goes first: it narrows the search
    for (int j = 0; j < 3; ++j) here |= int(q.at[j] >= double(block.cell[j] + 4)) << j;
    uint32_t candidates = 0;
    for (int i = 0; i < 8; ++i)
      candidates |= uint32_t((occupied[here ^ i] != 0) & (apart.word_least(here ^ i) <= best_.worst())) << i;
    for (; candidates; candidates &= candidates - 1) {
      const int word = here ^ lowest(candidates);
      if (!(apart.word_least(word) <= best_.worst())) continue;
      each_voxel(apart, block, word, occupied[word], [&] { return best_.worst(); },
                 [&](double d, int64_t code) { best_.add({d, code}); });
    }
  }

  const View& map_;
  Best& best_;
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
  const Blocks blocks(map, q.world);
  if (volume <= double(blocks.number())) {
    for (int64_t z = low[2]; z <= high[2]; ++z)
      for (int64_t y = low[1]; y <= high[1]; ++y)
        for (int64_t x = low[0]; x <= high[0]; ++x) {
          const int64_t at[3] = {x, y, z};
          consider(at);
        }
    return;
  }
  for (int64_t i = blocks.first; i < blocks.last; ++i) {  // the ball is larger than the map
    int64_t at[3];
    place(map, blocks.at(i), at);
    consider(at);
  }
}

VOX_BOTH int64_t count_within(const View& map, const Query& q, double radius) {
  const double square = radius * radius;
  int64_t total = 0;
  each_block(map, q, radius, [&](const Block& block, bool inside) {
    const uint64_t* occupied = map.occupied + block.slot * 8;
    if (inside) {
      for (int word = 0; word < 8; ++word) total += popcount(occupied[word]);
      return;
    }
    const Apart apart(q, block);
    for (int word = 0; word < 8; ++word) {
      if (!occupied[word]) continue;
      if (apart.word_most(word) <= square) {
        total += popcount(occupied[word]);
      } else if (apart.word_least(word) <= square) {
        each_octant(apart, word, occupied[word], [&] { return square; },
                    [&](uint32_t near, const double*, int, const int*) { total += popcount(near); });
      }
    }
  });
  return total;
}

// Write the voxels of a block that lie within the radius, in Morton order: metres, and integer
// coordinates as users count them. Returns their number.
VOX_BOTH int64_t list_block(const View& map, const Query& q, const Block& block, double square, double voxel_size,
                            float* metres, int32_t* voxel) {
  const Apart apart(q, block);
  const uint64_t* occupied = map.occupied + block.slot * 8;
  int64_t count = 0;
  double squares[64];  // of one word: roots are taken together
  for (int word = 0; word < 8; ++word) {
    if (!occupied[word] || !(apart.word_least(word) <= square)) continue;
    const int64_t before = count;
    each_octant(apart, word, occupied[word], [&] { return square; },
                [&](uint32_t near, const double* d, int, const int* corner) {
                  int32_t least[3];
                  for (int j = 0; j < 3; ++j) least[j] = int32_t(block.cell[j] - kBias) + corner[j];
                  for (; near; near &= near - 1, ++count) {
                    const int l = lowest(near);
                    squares[count - before] = d[l];
                    for (int j = 0; j < 3; ++j) voxel[3 * count + j] = least[j] + (l >> j & 1);
                  }
                });
    for (int64_t n = before; n < count; ++n) metres[n] = float(std::sqrt(squares[n - before]) * voxel_size);
  }
  return count;
}

VOX_BOTH void place_of(int64_t code, int32_t* voxel) {
  for (int j = 0; j < 3; ++j) voxel[j] = int32_t(int64_t(unspread(uint64_t(code) >> j)) - kBias);
}

// Metres, and integer coordinates as users count them.
VOX_BOTH void write(const Found& found, double voxel_size, float* metres, int32_t* voxel) {
  *metres = float(std::sqrt(found.distance) * voxel_size);
  place_of(found.code, voxel);
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
  VOX_BOTH void nearest(int64_t i, int64_t k, double limit, Found* room, float* metres, int32_t* voxel) const {
    const Found none{std::numeric_limits<double>::infinity(), 0};
    Query q;
    Best best(k, limit * limit, room);
    const int64_t found = query(i, q) ? Nearest<Best>(map, best).run(q) : 0;
    for (int64_t n = 0; n < k; ++n)
      write(n < found ? room[n] : none, voxel_size, metres + i * k + n, voxel + 3 * (i * k + n));
  }
#ifdef __AVX512F__
  void nearest_eight(int64_t i, int64_t k, double limit, float* metres, int32_t* voxel) const {
    Query q;
    BestEight best(k, limit * limit);
    const int64_t found = query(i, q) ? Nearest<BestEight>(map, best).run(q) : 0;
    float distance[8];
    int64_t code[8];
    best.finish(voxel_size, distance, code);
    for (int64_t n = 0; n < k; ++n) {
      metres[i * k + n] = n < found ? distance[n] : std::numeric_limits<float>::infinity();
      place_of(n < found ? code[n] : 0, voxel + 3 * (i * k + n));
    }
  }
#endif

  // How many occupied voxels lie within `radius` voxels.
  VOX_BOTH int64_t count(int64_t i, double radius) const {
    Query q;
    return query(i, q) ? count_within(map, q, radius) : 0;
  }
};

}  // namespace vox
