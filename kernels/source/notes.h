// What the threads that mark a scan note, and what comes of it.
#pragma once
#include <algorithm>
#include <vector>

#include "carve.h"
#include "scratch.h"

namespace vox {

struct Counts {  // of points; the first four in the order of scan.Inserted
  int64_t hits = 0, beyond_range = 0, not_finite = 0, off_grid = 0;
  int64_t far = 0;  // beyond the window
};

// What one thread notes: nobody else writes to it, so that no cache line goes back and forth.
struct Notes {
  Window window;
  Marker marker;  // to the window
  SparseMarks sparse;
  std::vector<uint32_t> places;  // hits in the window
  std::vector<uint64_t> far;     // codes of hits elsewhere
  Counts counts;
#ifdef __AVX512F__
  Queue cells, blocks;
#endif
};

// Everything that a scan touched, until it is applied or discarded.
struct Scratch {
  explicit Scratch(int threads) : threads(threads), notes(size_t(threads)) {}

  int threads;
  std::vector<Notes> notes;
  std::vector<uint32_t> dilated;
  int64_t corner[3];          // least block of the windows
  std::vector<int64_t> keys;  // touched blocks, without their world
  size_t in_window = 0;       // the first so many lie in the first window, in its order
  bool many_far = false;      // whether a scan had many points beyond the small window

  Window& window() { return notes[0].window; }
  uint32_t mask() { return (1u << 3 * window().bits()) - 1; }
  uint8_t* block(size_t i) {
    const int64_t key = keys[i];
    if (i >= in_window) return notes[0].sparse.block(key);
    return window().cells() + ((uint64_t(key) << 9) & mask());
  }
  void discard() {
    for (size_t i = 0; i < in_window; ++i) {
      std::memset(block(i), 0, kCells);
      window().touched()[uint64_t(keys[i]) & (mask() >> 9)] = 0;
    }
    for (Notes& from : notes) from.sparse.clear(), from.counts = Counts();
    keys.clear(), in_window = 0;
  }

  // Where the window holds a block; where it lies there.
  bool holds(uint64_t key) {
    bool inside = true;
    for (int j = 0; j < 3; ++j)
      inside &= unspread(key >> j) - uint64_t(corner[j]) < uint64_t{1} << (window().bits() - 3);
    return inside;
  }

  // List the blocks that hold marks, those of all threads in the first one's notes.
  void collect() {
    SparseMarks& all = notes[0].sparse;
    for (size_t t = 1; t < notes.size(); ++t) {
      each_touched(notes[t].window, [&](uint64_t place) {
        uint8_t* cells = notes[t].window.cells() + (place << 9);
        join(cells, window().cells() + (place << 9));
        window().touched()[place] = 1;
        std::memset(cells, 0, kCells);
        notes[t].window.touched()[place] = 0;
      });
      merge(notes[t].sparse, all);
      notes[t].sparse.clear();
    }
    if (all.size()) move_into_window(all);
    keys.clear();
    const uint64_t side = uint64_t{1} << (window().bits() - 3);
    each_touched(window(), [&](uint64_t place) {
      uint64_t at[3];
      for (int i = 0; i < 3; ++i) {
        const uint64_t least = uint64_t(corner[i]);
        at[i] = least + ((unspread(place >> i) - least) & (side - 1));
      }
      keys.push_back(int64_t(morton(at[0], at[1], at[2])));
    });
    in_window = keys.size();
    for (size_t i = 0; i < all.size(); ++i) keys.push_back(all.key(i));
    std::sort(keys.begin() + int64_t(in_window), keys.end());
  }

 private:
  template <class Visit>
  static void each_touched(const Window& of, const Visit& visit) {
    const uint64_t blocks = uint64_t{1} << 3 * (of.bits() - 3);
    const uint64_t* words = reinterpret_cast<const uint64_t*>(of.touched());
    for (uint64_t w = 0; w < blocks / 8; ++w) {
      if (!words[w]) continue;
      for (uint64_t place = 8 * w; place < 8 * w + 8; ++place)
        if (of.touched()[place]) visit(place);
    }
  }

  static void merge(const SparseMarks& from, SparseMarks& to) {
    for (size_t i = 0; i < from.size(); ++i) join(from.cells(i), to.block(from.key(i)));
  }
  static void join(const uint8_t* from, uint8_t* to) {
    for (int c = 0; c < kCells; ++c) to[c] = std::max(to[c], from[c]);
  }

  // A block on the window's border may have been marked on both sides of it.
  void move_into_window(SparseMarks& all) {
    SparseMarks rest;
    for (size_t i = 0; i < all.size(); ++i) {
      const uint64_t key = uint64_t(all.key(i));
      join(all.cells(i), holds(key) ? notes[0].marker.block(key) : rest.block(int64_t(key)));
    }
    std::swap(all, rest);
  }
};

}  // namespace vox
