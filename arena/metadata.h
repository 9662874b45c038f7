#ifndef QUARRY_ARENA_METADATA_H_
#define QUARRY_ARENA_METADATA_H_

#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "arena/lock.h"
#include "arena/page_source.h"

namespace quarry {

// Memory for the allocator's own records: slabs, runs, page tables, caches.
//
// A chunk is a mapping of its own, so that no overflow of a user's block runs
// into a record. Records are bumped off the chunk with the most left, and once freed
// are kept in one list per size; a chunk is never unmapped, and never on huge pages.
//
//   +-------+------------------+- - - +------------+- - - - - - - -+-------+
//   | guard | record | record  | gap  |   record   |   untouched   | guard |
//   +-------+------------------+- - - +------------+- - - - - - - -+-------+
//                              ^gap_  ^gap_end_    ^ bump_         ^ end_
//
// Large records begin on a page. What is left of the page before one, or of a chunk
// when there is a new one, serves what it is large enough for first; a large record that
// is taken from there leaves less than a page before it unused.
//
// Thread-safety: any thread.
// Invariant: in_use_bytes() + bytes in free lists <= mapped_bytes().
// Errors: nullptr when the page source refuses.
// Cost: one lock; a page fault for each fresh page.
// Size: records are multiples of 64 bytes up to 4 KiB; larger ones are whole pages, in
//   four sizes to each power of two: above 16 KiB less than a fourth of one is too much.
class MetadataPool {
 public:
  static constexpr size_t kRecordAlignment = 64;

  constexpr explicit MetadataPool(PageSource& source) : source_(source) {}
  MetadataPool(const MetadataPool&) = delete;
  MetadataPool& operator=(const MetadataPool&) = delete;

  // A record of at least `bytes` > 0 bytes, all zero, at a multiple of
  // kRecordAlignment. Pages that the caller does not touch stay untouched.
  [[nodiscard]] void* Allocate(size_t bytes) ABSL_LOCKS_EXCLUDED(lock_);

  // Sees to it that the next record of large_bytes bytes and small ones of together
  // small_bytes need no more from the source. False when that refuses.
  [[nodiscard]] bool Reserve(size_t large_bytes, size_t small_bytes)
      ABSL_LOCKS_EXCLUDED(lock_);

  // Gives a record back; `bytes` is what Allocate() was told.
  void Deallocate(void* record, size_t bytes) ABSL_LOCKS_EXCLUDED(lock_);

  size_t mapped_bytes() const ABSL_LOCKS_EXCLUDED(lock_);
  size_t in_use_bytes() const ABSL_LOCKS_EXCLUDED(lock_);

  Lock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }  // For fork.

 private:
  struct FreeRecord {
    FreeRecord* next;
  };

  static constexpr size_t kSmallStep = kRecordAlignment;
  static constexpr size_t kLargestSmall = 4096;
  static constexpr size_t kSmallLists = kLargestSmall / kSmallStep;
  static constexpr size_t kLargeLists = 4 * 32;  // Up to 4 KiB << 32.
  static constexpr size_t kFirstChunkBytes = 256 << 10;
  static constexpr size_t kLargestChunkBytes = 1 << 20;

  static size_t RecordBytes(size_t bytes);
  static size_t ListOf(size_t record_bytes);

  void* Bump(size_t record_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // What is not bumped off any more is the gap now, if it is the larger of both.
  void GiveUp(char* start, char* end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  char* MapChunk(size_t least_bytes, size_t* chunk_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  PageSource& source_;
  mutable Lock lock_{LockRank::kMetadata};
  char* bump_ ABSL_GUARDED_BY(lock_) = nullptr;
  char* end_ ABSL_GUARDED_BY(lock_) = nullptr;
  char* gap_ ABSL_GUARDED_BY(lock_) = nullptr;
  char* gap_end_ ABSL_GUARDED_BY(lock_) = nullptr;
  size_t next_chunk_bytes_ ABSL_GUARDED_BY(lock_) = kFirstChunkBytes;
  size_t mapped_bytes_ ABSL_GUARDED_BY(lock_) = 0;
  size_t in_use_bytes_ ABSL_GUARDED_BY(lock_) = 0;
  FreeRecord* free_[kSmallLists + kLargeLists] ABSL_GUARDED_BY(lock_) = {};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_METADATA_H_
