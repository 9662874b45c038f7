// The heap: which room serves a request, and which one a pointer came from.
//
//   bytes           room
//   0 .. 64 KiB     thread cache (slabs)
//   .. threshold    arena (page runs); settings.mmap_threshold_bytes
//   more            huge blocks (mappings of their own)
//
// Above 16 KiB a page run serves what must be zero, since its pages may be so, and a block
// of more than 8 KiB that realloc() makes larger, since it may grow on without a copy.
//
// Reallocate() and TryExpand() are in reallocate.cc, what gives back is in upkeep.cc, what
// asks about all in heap_statistics.cc, and what all of these share in rooms.h,
// large_blocks.h and upkeep.h.
//
// These functions know neither errno nor the new_handler: they return nullptr
// when there is no memory, with the heap as it was, and leave the rest to their
// callers (calls.h, operator_new.cc).
//
// Thread-safety: all functions on any thread at any time.
// Errors: a pointer that is not the start of a block in use aborts with a
//   report (arena/report.h).
#ifndef QUARRY_ALLOC_HEAP_H_
#define QUARRY_ALLOC_HEAP_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <atomic>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "alloc/statistics.h"
#include "tcache/thread_cache.h"

namespace quarry {

// Of a block that starts where one of its class may: neither what begins behind the last
// whole block of a slab, nor a block that is aligned to 8 only.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool IsWholeBlock(const void* p,
                                                      size_t block_bytes) {
  return reinterpret_cast<uintptr_t>(p) % kGranuleBytes + block_bytes <=
             kGranuleBytes &&
         block_bytes >= kMinAlignmentBytes;
}

// --- Allocating. Blocks are aligned to 16 bytes, and distinct for 0 bytes. ---

// A block if there is one at hand, else nullptr: then AllocateSlow().
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* TryPop(size_t bytes) {
  return ThreadCache::TryPop(bytes);
}
[[nodiscard]] void* AllocateSlow(size_t bytes);

// The same at a multiple of `alignment`, a power of two; else AllocateAligned().
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* TryPopAligned(size_t bytes,
                                                        size_t alignment) {
  if (ABSL_PREDICT_FALSE(bytes > kEvenMaxBytes || alignment > kEvenMaxBytes)) {
    // As the resources of std::pmr ask for all.
    return alignment <= kMinAlignmentBytes ? ThreadCache::TryPop(bytes) : nullptr;
  }
  return ThreadCache::TryPop(AlignedBytes(bytes, alignment));
}

// The same with all bytes zero; else AllocateZeroed().
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* TryPopZeroed(size_t bytes) {
  if (ABSL_PREDICT_FALSE(bytes > kSlabsOnlyMaxBytes)) return nullptr;
  void* block = ThreadCache::TryPop(bytes);
  if (ABSL_PREDICT_FALSE(block == nullptr)) return nullptr;
  if (bytes > kLinearMaxBytes) return memset(block, 0, bytes);
  // Blocks are whole pieces of this size. The fence keeps the compiler from making
  // a string instruction of a few stores.
  char* piece = static_cast<char*>(block);
  const char* const end = piece + bytes;
  do {
    memset(piece, 0, kMinAlignmentBytes);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    piece += kMinAlignmentBytes;
  } while (piece < end);
  return block;
}

// Whether `p` is a block of this thread's that realloc() to `bytes` leaves where
// it is, as can be told at once; else Reallocate().
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool StaysInPlace(const void* p,
                                                      size_t bytes) {
  const Magazine* magazine = ThreadCache::WarmMagazineOf(p);
  return magazine != nullptr && bytes <= kSmallMaxBytes &&
         magazine->ServesRequest(bytes) &&
         IsWholeBlock(p, magazine->BlockBytesWhenWarm());
}

// A page run that this thread keeps, else nullptr. Requires bytes > kSlabsOnlyMaxBytes.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* TryTakeMedium(size_t bytes) {
  if (ABSL_PREDICT_FALSE(thread_state.tag == 0)) return nullptr;
  return ThreadCache::TakeRun(bytes);
}

// What is at hand, whether or not TryPop() looks at it: a block, else nullptr. Then
// AllocateSlow().
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* TryTakeAtHand(size_t bytes) {
  if (bytes <= kSmallMaxBytes) return ThreadCache::TryTakeFor(bytes);
  return TryTakeMedium(bytes);
}

// All bytes are zero.
[[nodiscard]] void* AllocateZeroed(size_t bytes);

// At a multiple of `alignment`, a power of two.
[[nodiscard]] void* AllocateAligned(size_t bytes, size_t alignment);

// For a caller who needs an alignment of 8 bytes only.
[[nodiscard]] void* AllocateUnaligned8(size_t bytes);

// `p`, or another block with its content up to the smaller of both sizes; on
// nullptr p is as it was. Requires p != nullptr and bytes > 0.
[[nodiscard]] void* Reallocate(void* p, size_t bytes);

// Makes `p` at least least_bytes and at most about most_bytes long where it is,
// and no shorter than it was. Returns its usable bytes, or 0 with nothing
// changed. Requires p != nullptr and least_bytes <= most_bytes.
[[nodiscard]] size_t TryExpand(void* p, size_t least_bytes, size_t most_bytes);

// --- Freeing. All take nullptr, and leave errno alone. ---

// `caller` is the code that called the function which these are inlined into.
//
// Any pointer, nullptr too. For what lies outside of the page map's home window.
ABSL_ATTRIBUTE_NOINLINE void DeallocateUncommon(void* p, const void* caller);
// Where `offset`, OffsetOf() the tag of `p`, is of no magazine of this thread.
void DeallocateForeign(void* p, Tag offset, const void* caller);
// Where that is `magazine`, which did not take it.
void DeallocateNotPushed(void* p, const Magazine* magazine, const void* caller);
// For a caller who knows the size: the first two, and the third.
void DeallocateSizedSlow(void* p, size_t bytes);
void DeallocateSizedNotPushed(void* p, size_t bytes, const Magazine* magazine);

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void Deallocate(void* p) {
  Tag tag;
  if (ABSL_PREDICT_FALSE(!PageMap::HomeTagOf(p, &tag))) {
    return DeallocateUncommon(p, __builtin_return_address(0));
  }
  const Tag offset = ThreadCache::OffsetOf(tag);
  if (ABSL_PREDICT_FALSE(offset >= kOwnerUnit)) {
    return DeallocateForeign(p, offset, __builtin_return_address(0));
  }
  Magazine* magazine = ThreadCache::MagazineOf(tag);
  if (ABSL_PREDICT_TRUE(ThreadCache::TryPush(magazine, p))) return;
  return DeallocateNotPushed(p, magazine, __builtin_return_address(0));
}

// By a magazine that was found for `p`.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void DeallocateSizedTo(Magazine* magazine,
                                                           void* p,
                                                           size_t bytes) {
  if (ABSL_PREDICT_TRUE(ThreadCache::TryPushSized(magazine, p, bytes))) return;
  return DeallocateSizedNotPushed(p, bytes, magazine);
}

// `bytes` is what was asked for, or any size up to what was given.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void DeallocateSized(void* p,
                                                         size_t bytes) {
  Magazine* magazine;
  if (ABSL_PREDICT_FALSE(!ThreadCache::FindMagazine(p, &magazine))) {
    return DeallocateSizedSlow(p, bytes);
  }
  return DeallocateSizedTo(magazine, p, bytes);
}

// The same for a block from AllocateAligned().
void DeallocateAlignedSizedSlow(void* p, size_t bytes, size_t alignment);

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void DeallocateAlignedSized(
    void* p, size_t bytes, size_t alignment) {
  Magazine* magazine;
  if (ABSL_PREDICT_TRUE(
          bytes <= kEvenMaxBytes && alignment <= kEvenMaxBytes &&
          ThreadCache::FindMagazine(p, &magazine) &&
          ThreadCache::TryPushSized(magazine, p,
                                    AlignedBytes(bytes, alignment)))) {
    return;
  }
  return DeallocateAlignedSizedSlow(p, bytes, alignment);
}

// --- Asking. ---

// What the caller may write; 0 for nullptr.
size_t UsableBytesSlow(const void* p);

ABSL_ATTRIBUTE_ALWAYS_INLINE inline size_t UsableBytes(const void* p) {
  if (const Magazine* magazine = ThreadCache::WarmMagazineOf(p)) {
    const size_t block_bytes = magazine->BlockBytesWhenWarm();
    if (ABSL_PREDICT_TRUE(IsWholeBlock(p, block_bytes))) return block_bytes;
  }
  return UsableBytesSlow(p);
}

// UsableBytes() of a block that is allocated with `bytes`, as a rule: a page run that the
// thread kept may have more, and a kept mapping, too. From 4 MiB on it is whole pages, of
// which a page run has some more. A block of 16 to 64 KiB that is a page run may have less.
size_t GoodBytes(size_t bytes);

HeapStatistics GatherStatistics();

// Aborts when an invariant does not hold anywhere. Looks into the magazines of the calling
// thread and of parked caches; those of other threads may change meanwhile.
void VerifyHeap();

// --- Giving back. ---

// The calling thread's magazines to their slabs, empty slabs to the arena.
void FlushThread();

// The same, and free memory to the OS but for `pad_bytes`. Returns how many
// bytes were given back.
size_t ReleaseMemory(size_t pad_bytes);

// To be called after settings.perturb_byte was set: from now on it holds for
// the calling thread, and for threads that start later.
void ApplyPerturbation();

}  // namespace quarry

#endif  // QUARRY_ALLOC_HEAP_H_
