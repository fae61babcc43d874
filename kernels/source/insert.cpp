// Insertion, in two calls: mark what a scan touched; then, once there is room, apply it to the map.
#include <new>

#include "map.h"
#include "mark.h"

using namespace vox;

namespace {

// Update the log-odds of a block by what was marked, and its masks.
#ifdef __AVX512BW__
void update(const uint8_t* marks, const Evidence& by, int8_t* log_odds, uint64_t* known, uint64_t* occupied) {
  const __m512i unknown = _mm512_set1_epi8(kUnknown), hit = _mm512_set1_epi8(char(by.hit)),
                miss = _mm512_set1_epi8(char(by.miss)), low = _mm512_set1_epi8(char(by.low)),
                high = _mm512_set1_epi8(char(by.high));
  for (int w = 0; w < 8; ++w) {
    const __m512i mark = _mm512_loadu_si512(marks + 64 * w);
    __m512i value = _mm512_loadu_si512(log_odds + 64 * w);
    const __mmask64 touched = _mm512_test_epi8_mask(mark, mark);
    const __mmask64 is_hit = _mm512_cmpeq_epi8_mask(mark, _mm512_set1_epi8(kHit));
    const __m512i old = _mm512_maskz_mov_epi8(_mm512_cmpneq_epi8_mask(value, unknown), value);
    // The sum saturates at what a byte holds, which lies beyond the clamps.
    const __m512i sum = _mm512_adds_epi8(old, _mm512_mask_mov_epi8(miss, is_hit, hit));
    value = _mm512_mask_mov_epi8(value, touched, _mm512_min_epi8(_mm512_max_epi8(sum, low), high));
    _mm512_storeu_si512(log_odds + 64 * w, value);
    known[w] = _mm512_cmpneq_epi8_mask(value, unknown);
    occupied[w] = _mm512_cmpge_epi8_mask(value, _mm512_set1_epi8(char(by.threshold)));
  }
}
#else
void update(const uint8_t* marks, const Evidence& by, int8_t* log_odds, uint64_t* known, uint64_t* occupied) {
  for (int c = 0; c < kCells; ++c) {
    const int32_t old = log_odds[c] == kUnknown ? 0 : log_odds[c];
    int32_t sum = old + (marks[c] == kHit ? by.hit : by.miss);
    sum = sum < by.low ? by.low : sum > by.high ? by.high : sum;
    log_odds[c] = marks[c] ? int8_t(sum) : log_odds[c];
  }
  for (int w = 0; w < 8; ++w) {
    uint64_t seen = 0, full = 0;
    for (int c = 0; c < 64; ++c) {
      const int8_t value = log_odds[64 * w + c];
      seen |= uint64_t(value != kUnknown) << c;
      full |= uint64_t(value >= by.threshold) << c;
    }
    known[w] = seen, occupied[w] = full;
  }
}
#endif

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* vox_scratch(int64_t threads) { return new (std::nothrow) Scratch(int(threads)); }

void vox_scratch_delete(void* scratch) { delete static_cast<Scratch*>(scratch); }

int64_t vox_scratch_bytes(const void* scratch) {
  const Scratch& s = *static_cast<const Scratch*>(scratch);
  int64_t bytes = 0;
  for (const Notes& from : s.notes)
    bytes += from.window.bytes() + from.sparse.bytes() + int64_t(4 * from.places.capacity() + 8 * from.far.capacity());
  return bytes;
}

// Mark a scan; `sight` is what a projective one was computed from. Returns the number of blocks it touched, or -1 where memory ran out.
int64_t vox_mark(void* scratch, const float* points, int64_t count, const double* origin, double voxel_size,
                 double max_range, int64_t mode, const Sight* sight, int64_t* counts) {
  Scratch& s = *static_cast<Scratch*>(scratch);
  try {
    s.discard();
    Scan scan{points, count, {origin[0], origin[1], origin[2]}, voxel_size, max_range, 1 / voxel_size};
    Marking(s, scan, Mode(mode), sight).run();
  } catch (const std::bad_alloc&) {
    return -1;
  }
  for (int i = 0; i < 4; ++i) counts[i] = 0;
  for (const Notes& from : s.notes) {
    counts[0] += from.counts.hits, counts[1] += from.counts.beyond_range;
    counts[2] += from.counts.not_finite, counts[3] += from.counts.off_grid;
  }
  return int64_t(s.keys.size());
}

// The blocks that are marked, without their world; returns their number, and copies them unless null.
int64_t vox_touched(const void* scratch, int64_t* codes) {
  const Scratch& s = *static_cast<const Scratch*>(scratch);
  if (codes) std::copy(s.keys.begin(), s.keys.end(), codes);
  return int64_t(s.keys.size());
}

// How many of the blocks that are marked the map lacks.
int64_t vox_missing(void* scratch, const View* map, int64_t world) {
  const Scratch& s = *static_cast<const Scratch*>(scratch);
  int64_t missing = 0;
  for (const int64_t key : s.keys) missing += find(*map, world << kKeyBits | key) < 0;
  return missing;
}

// Update the map by what is marked, and forget the marks. The map has room.
void vox_apply(void* scratch, View* map, int64_t world, const Evidence* by) {
  Scratch& s = *static_cast<Scratch*>(scratch);
  for (size_t i = 0; i < s.keys.size(); ++i) {
    const int64_t slot = acquire(*map, world << kKeyBits | s.keys[i]);
    update(s.block(i), *by, map->log_odds + slot * kCells, map->known + slot * 8, map->occupied + slot * 8);
  }
  s.discard();
}

void vox_discard(void* scratch) { static_cast<Scratch*>(scratch)->discard(); }

}  // extern "C"
#pragma GCC visibility pop
