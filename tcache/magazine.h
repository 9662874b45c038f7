// A thread's bounded stack of free blocks of one size class.
//
//   head -> block -> block -> ... -> block -> nullptr
//
// The stack is a list through the first word of each free block: free() stores
// to the block itself, whose address is its argument, and not through an
// address that is known only after loads of its own; and no array of addresses
// takes room in the first-level cache. `room` counts down to -1, so that the
// overflow of a full magazine is the sign of a subtraction.
//
// The fields after `room` say which frees the fast path takes. They are here
// because it has this line in hand.
//
// Invariant: the list holds capacity - room blocks, none of them twice, each of
//   a slab of this class, which the thread owns but for ThreadCache::KeepForeign(). A
//   program that frees a block twice, with others in between, makes a ring of the list,
//   of which `room` may rise above the capacity (ThreadCache::LookForRing).
// Thread-safety: the owner thread alone, or who holds the whole cache after
//   that thread is gone.
// Size: 32 bytes.
// Source: magazines of Bonwick and Adams 2001; the list of tcmalloc.
#ifndef QUARRY_TCACHE_MAGAZINE_H_
#define QUARRY_TCACHE_MAGAZINE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/attributes.h"
#include "arena/page_map.h"
#include "tcache/size_classes.h"

namespace quarry {

// What a free block holds in its first word.
struct FreeBlock {
  FreeBlock* next;
};

struct Magazine {
  FreeBlock* head;
  // Blocks that may still be pushed; -1 for a moment, in free() that overflows.
  int32_t room;
  // An offset within a slab is the start of a block when its product with the
  // first is below the second. Both are StartReciprocal(), but the second is 0 in a cold
  // class, and both are in a cache that was not opened, or for a free that is diverted
  // (ThreadCache::DivertNextFree): no offset passes.
  uint32_t start_reciprocal;
  uint32_t start_limit;
  // Sized free: a size belongs to this class when it is one of `request_sizes`
  // from min_request_bytes on, which in a cold class is kColdShift too much, so that
  // no size passes. Of none is a class only while a free of it is diverted.
  uint32_t min_request_bytes;
  uint32_t request_sizes;
  int32_t capacity;

  // Takes the most recently pushed block. Requires that there is one.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void* Pop() {
    FreeBlock* block = head;
    FreeBlock* next = block->next;
    head = next;
    ++room;
    // The next Pop() waits for its link, and the program for the block.
    __builtin_prefetch(next);
    return block;
  }

  // Adds a block; true when that was one more than the magazine may hold.
  ABSL_ATTRIBUTE_ALWAYS_INLINE bool Push(void* p) {
    FreeBlock* block = static_cast<FreeBlock*>(p);
    block->next = head;
    // In this order, for the child of a fork at any moment: see thread_life.h.
    std::atomic_signal_fence(std::memory_order_release);
    head = block;
    return --room < 0;
  }

  bool IsBlockStart(const void* p) const {
    return OffsetInGranule(p) * start_reciprocal < start_limit;
  }

  // The same whether or not the class is cold.
  bool IsBlockStartEvenIfCold(const void* p) const {
    return BlockOfOffset(OffsetInGranule(p), start_reciprocal).IsStart();
  }

  // The size of a block. Requires that the class is warm.
  size_t BlockBytesWhenWarm() const {
    return size_t{min_request_bytes} + request_sizes - 1;
  }

  // By the low 32 bits of `bytes`, which tell all sizes up to 2 GiB apart.
  bool ServesRequest(size_t bytes) const {
    return static_cast<uint32_t>(bytes) - min_request_bytes < request_sizes;
  }

  // The same of a class that is cold; of a warm one, false. Requires less than 2 GiB.
  bool ServesRequestWhenCold(size_t bytes) const {
    return static_cast<uint32_t>(bytes) - (min_request_bytes - kColdShift) <
           request_sizes;
  }

  static constexpr uint32_t kColdShift = uint32_t{1} << 31;
};

static_assert(sizeof(Magazine) == 32);

// Where a class's magazine lies in a cache, in bytes; the low bits of a tag.
constexpr Tag MagazineOffset(SizeClass size_class) {
  return static_cast<Tag>(size_class * sizeof(Magazine));
}
static_assert(MagazineOffset(kClasses) < (kHugeTag & (kOwnerUnit - 1)));

// The class of a slab's blocks, by the tag of the slab.
constexpr SizeClass ClassOfTag(Tag tag) {
  return tag % kOwnerUnit / sizeof(Magazine);
}

}  // namespace quarry

#endif  // QUARRY_TCACHE_MAGAZINE_H_
