// Allocating what is larger than any size class: page runs and huge blocks.
#ifndef QUARRY_ALLOC_LARGE_BLOCKS_H_
#define QUARRY_ALLOC_LARGE_BLOCKS_H_

#include <stddef.h>

#include <algorithm>
#include <atomic>

#include "arena/arena.h"
#include "arena/filling.h"
#include "arena/huge.h"
#include "arena/settings.h"
#include "tcache/size_classes.h"

namespace quarry {

// A new block, and whether all of its bytes are known to be zero.
struct Large {
  void* start;
  bool zeroed;
};

// Blocks above this are huge whatever the threshold: one free of a larger run would leave
// more dirty than it purges.
constexpr size_t kMostRunBytes = Arena::kMostCapPurgeBytes;
static_assert(kMostRunBytes <= Arena::kLargestSegmentBytes);

// Whether a page run serves a request for `bytes`, and no huge block.
inline bool ServedByArena(size_t bytes) {
  return bytes <= kMostRunBytes &&
         bytes < std::max(
                     settings.mmap_threshold_bytes.load(std::memory_order_relaxed),
                     kSmallMaxBytes + 1);
}

// A page run or a huge block of `bytes` bytes at a multiple of `alignment`, a power of two;
// no start where there is no memory, though what was free went back to the system.
Large AllocateLarge(size_t bytes, size_t alignment);

// The same, of what there is and the system gives: nothing goes back to it first.
Large TryAllocateLarge(size_t bytes, size_t alignment);

// A huge block that the program will use as `filling` says; nullptr where there is no memory.
Huge* AllocateHuge(size_t bytes, size_t alignment, Filling filling);

// What filling_history is told of a block that is new, or has grown.
void NoteHuge(const Huge* huge);

}  // namespace quarry

#endif  // QUARRY_ALLOC_LARGE_BLOCKS_H_
