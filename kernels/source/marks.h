// What a scan touched, on a device: a hash from blocks to masks of bits.
//
// A block's place in the hash is also the place of its masks, so that whoever finds the key needs to
// wait for nobody. Setting bits needs no order: the marks are the same whatever the threads do.
#pragma once
#include "each.h"
#include "ray.h"
#include "scan.h"

namespace vox {

enum Mask { kEndMask = 0, kHitMask = 8, kFreeMask = 16, kMaskWords = 24 };

// Numbers that stay on the device until somebody asks; they stand in device.STATE, in this order.
struct State {
  int64_t hits, beyond_range, not_finite, off_grid;  // points, in the order of scan.Inserted
  int64_t missing;   // blocks that the map lacks
  int64_t touched;   // blocks that are marked
  int64_t ends;      // those of them that hold points whose rays are still to come
  int64_t overflow;  // whether the marks had no room
  int64_t before;    // blocks that the map held
  int64_t refused;   // scans that were not applied, for want of room
};

// Arrays that torch owns; its twin is device.MarksView.
struct Marks {
  int64_t* keys;    // [places], kEmpty where free; batch index << kKeyBits | block
  uint64_t* masks;  // [places, kMaskWords]
  int64_t* list;    // [places] places in use
  int64_t* slots;   // [places] of them in the map, times two, plus one where it was taken just now
  State* state;
  int64_t places;   // a power of two

  static constexpr int kProbes = 512;

  // The place of a block, -1 where there is no room.
  VOX_BOTH int64_t place(int64_t key) const {
    const uint64_t mask = uint64_t(places) - 1;
    uint64_t at = hash(uint64_t(key)) & mask;
    for (int probe = 0; probe < kProbes; ++probe, at = (at + 1) & mask) {
      int64_t seen = fresh(keys + at);
      if (seen == kEmpty) {
        seen = exchange_if(keys + at, kEmpty, key);
        if (seen == kEmpty) {
          const int64_t n = add(&state->touched, 1);
          list[n] = int64_t(at);
          if (2 * n >= places) state->overflow = 1;  // whatever is lost beyond, it is told
          return int64_t(at);
        }
      }
      if (seen == key) return int64_t(at);
    }
    state->overflow = 1;
    return -1;
  }
};

// Sets bits one after another, those of a word at once.
class Marker {
 public:
  VOX_BOTH Marker(const Marks& to, int64_t batch, int mask) : to_(to), batch_(batch), mask_(mask) {}

  VOX_BOTH void mark(uint64_t code) {
    if (int64_t(code >> 6) != word_) flush(), word_ = int64_t(code >> 6);
    bits_ |= uint64_t{1} << (code & 63);
  }
  VOX_BOTH void flush() {
    if (!bits_) return;
    const int64_t block = word_ >> 3;
    if (block != block_) block_ = block, place_ = to_.place(batch_ << kKeyBits | block);
    if (place_ >= 0) {
      uint64_t* word = to_.masks + place_ * kMaskWords + mask_ + (word_ & 7);
      if ((fresh(word) & bits_) != bits_) set_bits(word, bits_);  // most are set already, near the sensor
    }
    bits_ = 0;
  }

 private:
  const Marks& to_;
  const int64_t batch_;
  const int mask_;
  int64_t word_ = -1, block_ = -1, place_ = -1;
  uint64_t bits_ = 0;
};

// Scans of several worlds; its twin is device.ScansView.
struct Scans {
  const float* points;    // [batch, count, 3], metres
  const double* origins;  // [batch, 3], metres
  const int64_t* worlds;  // [batch]
  int64_t batch, count;
  double voxel_size, max_range;
};

// Mark what a ray passes through before the voxel in which it ends.
VOX_BOTH void carve(const Marks& to, int64_t batch, const Fixed& origin, const Fixed& end) {
  Marker marker(to, batch, kFreeMask);
  const uint64_t last = code_of(end);
  visit_ray(make_ray(origin, end), [&](uint64_t code) {
    if (code != last) marker.mark(code);
  });
  marker.flush();
}

}  // namespace vox
