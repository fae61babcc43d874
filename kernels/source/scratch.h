// What one scan touched, before the map hears of it: a byte per voxel, 1 free, 2 hit.
//
// Around the sensor the bytes lie in a window, a torus of 2^k voxels per axis in Morton order, so a
// voxel's place is the low bits of its code and marking is one store. Stores of the same byte need
// no order: any number of threads marks the same scan. Voxels beyond the window go to a hash.
#pragma once
#include <sys/mman.h>

#include <cstring>
#include <new>
#include <vector>

#include "grid.h"

namespace vox {

constexpr uint8_t kFree = 1, kHit = 2;

class SparseMarks {
 public:
  uint8_t* block(int64_t key) {
    if (key == last_) return cells_.data() + int64_t(last_slot_) * kCells;
    if (2 * (keys_.size() + 1) > table_.size()) grow();
    size_t at = hash(key) & (table_.size() - 1);
    while (table_[at] >= 0 && keys_[table_[at]] != key) at = (at + 1) & (table_.size() - 1);
    if (table_[at] < 0) {
      table_[at] = int32_t(keys_.size());
      keys_.push_back(key);
      cells_.resize(cells_.size() + kCells);
    }
    last_ = key, last_slot_ = table_[at];
    return cells_.data() + int64_t(last_slot_) * kCells;
  }
  void mark(uint64_t code, uint8_t value) {
    uint8_t& cell = block(int64_t(code >> 9))[code & 511];
    if (cell < value) cell = value;
  }
  size_t size() const { return keys_.size(); }
  int64_t key(size_t i) const { return keys_[i]; }
  const uint8_t* cells(size_t i) const { return cells_.data() + i * kCells; }
  int64_t bytes() const {
    return int64_t(cells_.capacity() + 8 * keys_.capacity() + 4 * table_.capacity());
  }
  // What one far scan took is given back by the next that needs far less.
  void clear() {
    if (16 * keys_.size() < table_.size()) {
      std::vector<int64_t>().swap(keys_), std::vector<uint8_t>().swap(cells_), std::vector<int32_t>().swap(table_);
    } else {
      keys_.clear(), cells_.clear(), table_.assign(table_.size(), -1);
    }
    last_ = kEmpty;
  }

 private:
  void grow() {
    table_.assign(table_.empty() ? 64 : 2 * table_.size(), -1);
    for (size_t i = 0; i < keys_.size(); ++i) {
      size_t at = hash(keys_[i]) & (table_.size() - 1);
      while (table_[at] >= 0) at = (at + 1) & (table_.size() - 1);
      table_[at] = int32_t(i);
    }
  }
  std::vector<int64_t> keys_;
  std::vector<int32_t> table_;
  std::vector<uint8_t> cells_;
  int64_t last_ = kEmpty;
  int32_t last_slot_ = 0;
};

// Pages of a window are zero until they are touched, and cost nothing until then.
class Window {
 public:
  ~Window() { release(); }
  // Make room for a torus of 2^bits voxels per axis; what is there is kept if it is large enough.
  void reserve(int bits) {
    if (bits <= bits_) return;
    release();
    const size_t cells = size_t{1} << 3 * bits, blocks = cells >> 9;
    void* memory = mmap(nullptr, cells + blocks, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    cells_ = static_cast<uint8_t*>(memory), touched_ = cells_ + cells, bits_ = bits;
  }
  int bits() const { return bits_; }
  uint8_t* cells() const { return cells_; }
  uint8_t* touched() const { return touched_; }
  int64_t bytes() const { return bits_ ? (int64_t{1} << 3 * bits_) / 512 * 513 : 0; }

 private:
  void release() {
    if (bits_) munmap(cells_, size_t(bytes()));
    bits_ = 0;
  }
  int bits_ = 0;
  uint8_t *cells_ = nullptr, *touched_ = nullptr;
};

}  // namespace vox
