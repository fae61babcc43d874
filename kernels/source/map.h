// The map's storage, which torch owns: a hash table from block keys to slots, and arrays by slot.
#pragma once
#include "grid.h"

namespace vox {

struct Entry {
  int64_t key;   // kEmpty where free
  int64_t slot;
};

// Filled in by Python; its twin is compiled.View.
struct View {
  Entry* table;       // [table_size], open addressing with linear probing
  int64_t table_size; // a power of two
  int64_t* keys;      // [capacity]
  int8_t* log_odds;   // [capacity, 512], in Morton order; kUnknown where nothing was seen
  uint64_t* known;    // [capacity, 8], a bit per voxel
  uint64_t* occupied; // [capacity, 8]
  int64_t* count;     // slots in use
  int64_t capacity;
  // For queries that may have to look at all blocks of a world: slots sorted by world, and where
  // each world's begin, [worlds + 1]; null where the map holds no more than one world.
  const int64_t *by_world, *begin;
};

// What evidence does to a voxel, in steps of log-odds.
struct Evidence {
  int32_t hit, miss, low, high, threshold;
};

VOX_BOTH int64_t find(const View& map, int64_t key) {
  const uint64_t mask = uint64_t(map.table_size) - 1;
  for (uint64_t at = hash(uint64_t(key)) & mask;; at = (at + 1) & mask) {
    const Entry& entry = map.table[at];
    if (entry.key == key) return entry.slot;
    if (entry.key == kEmpty) return -1;
  }
}

// Slots of a world: at(first) ... at(last - 1).
struct Blocks {
  const View& map;
  int64_t first, last;

  VOX_BOTH Blocks(const View& map, int64_t world) : map(map), first(0), last(0) {
    if (map.begin) {
      if (world >= 0 && world < kWorlds) first = map.begin[world], last = map.begin[world + 1];
    } else if (*map.count && map.keys[0] >> kKeyBits == world) {
      last = *map.count;
    }
  }
  VOX_BOTH int64_t number() const { return last - first; }
  VOX_BOTH int64_t at(int64_t i) const { return map.by_world ? map.by_world[i] : i; }
};

// The slot of a block, a new one where it has none; the caller has made room.
inline int64_t acquire(View& map, int64_t key) {
  const uint64_t mask = uint64_t(map.table_size) - 1;
  uint64_t at = hash(uint64_t(key)) & mask;
  for (; map.table[at].key != kEmpty; at = (at + 1) & mask)
    if (map.table[at].key == key) return map.table[at].slot;
  const int64_t slot = (*map.count)++;
  map.table[at] = {key, slot};
  map.keys[slot] = key;
  for (int i = 0; i < kCells; ++i) map.log_odds[slot * kCells + i] = kUnknown;
  for (int i = 0; i < 8; ++i) map.known[slot * 8 + i] = map.occupied[slot * 8 + i] = 0;
  return slot;
}

}  // namespace vox
