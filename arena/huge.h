#ifndef QUARRY_ARENA_HUGE_H_
#define QUARRY_ARENA_HUGE_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "arena/filling.h"
#include "arena/lock.h"
#include "arena/metadata.h"
#include "arena/page_map.h"
#include "arena/page_source.h"

namespace quarry {

// A block with a mapping of its own.
//
// Thread-safety: whoever owns the block reads all of these but the links without a lock;
//   they change only where it is allocated, resized or freed. `has_stale_pages` is its owner's.
struct Huge {
  char* start = nullptr;  // A multiple of `alignment`.
  size_t bytes = 0;       // Usable; a multiple of PageBytes().
  size_t alignment = 0;   // At least kGranuleBytes.
  Huge* next = nullptr;
  Huge* previous = nullptr;

  // Atomic only so that a wrong free() that reads it beside the lock is
  // reported and not a data race. Written under the lock of HugeBlocks.
  std::atomic<bool> in_use{false};
  // Every byte was zero when Allocate() gave it out; or is, while it is kept.
  bool zeroed = false;
  // It was given out with pages that its last owner had written to, as they were.
  bool has_stale_pages = false;
  // What is touched of it from now on becomes resident by huge pages.
  bool has_huge_pages = false;
  uint32_t freed_ms = 0;  // NowMs() of the free, while kept for reuse.
};

// All huge blocks: each a mapping of its own, resized by moving page tables.
//
// A few freed mappings are kept for reuse, oldest out first, so that a program
// that allocates and frees a large buffer in a loop makes no system call and
// faults no page. Their pages stay as they were: dirty, but never so many
// bytes that with the blocks in use they are more than were ever in use. Of larger ones
// only the addresses are kept, and of large ones that were not filled: their pages go back at
// once, and they read as zero. What nobody reused for settings.decay_ms the maintenance
// thread unmaps (tcache/maintenance.h). Nothing is kept above the soft limit.
//
// What will be filled is on huge pages.
//
// While settings.mmap_threshold_adapts, a block whose size a program has shown
// to free again raises settings.mmap_threshold_bytes over that size. The arenas
// serve the next ones, so this one is not kept. Others of the size may be in use still:
// these are kept when they are freed, and come before new pages of an arena (TakeKept()).
//
// The page map names a block at its first granule only, so an entry costs the
// same for 1 MiB and for 1 TiB. It stays while the mapping is kept for reuse;
// Huge::in_use tells a second free from the first.
//
// Thread-safety: any thread; a block is resized or freed by one at a time.
//   System calls are made without lock_. While blocks that were kept are on
//   their way from the list to the system, purge_lock_ is held, one block at a
//   time, so that the child of a fork never inherits one that nobody knows.
// Invariant: mapped bytes = live bytes + cached bytes.
// Errors: nullptr or false when the page source or the pool refuses; nothing
//   has then changed.
// Source: the adapting threshold is that of glibc's mmapped chunks.
class HugeBlocks {
 public:
  struct Statistics {
    size_t live_blocks;
    size_t live_bytes;
    size_t cached_blocks;
    size_t cached_bytes;
  };

  // Bounds of what is kept for reuse, but for the moment in which who passed
  // them waits to unmap what is too much.
  static constexpr size_t kMostDirtyBytes = 128 << 20;
  static constexpr size_t kMostCachedBlocks = 8;
  static constexpr size_t kLargestDirtyBytes = 64 << 20;

  // Of larger ones the pages are kept only if they were filled: else the program may
  // want zeros of which it touches as few.
  static constexpr size_t kLargestUnfilledBytes = 32 << 20;

  // What TakeKept() looks for, at least: the threshold begins there.
  static constexpr size_t kLeastTakenBytes = size_t{4} << 20;

  // The threshold follows blocks up to this size.
  static constexpr size_t kLargestAdaptedBytes = 32 << 20;

  constexpr HugeBlocks(PageSource& source, MetadataPool& metadata)
      : source_(source), metadata_(metadata) {}
  HugeBlocks(const HugeBlocks&) = delete;
  HugeBlocks& operator=(const HugeBlocks&) = delete;

  // At least `bytes` > 0 bytes at a multiple of `alignment`, a power of two.
  // A mapping kept for reuse may serve if it is at most an eighth larger.
  [[nodiscard]] Huge* Allocate(size_t bytes, size_t alignment,
                               Filling filling = Filling::kUnknown)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // A block that is kept with its pages and that Allocate() would return for this, for a
  // request that would else get a page run. nullptr if there is none. Takes no lock while
  // nothing is kept.
  [[nodiscard]] Huge* TakeKept(size_t bytes, size_t alignment) ABSL_LOCKS_EXCLUDED(lock_) {
    if (bytes < kLeastTakenBytes || !keeps_any_.load(std::memory_order_relaxed)) {
      return nullptr;
    }
    return TakeCached(RoundUp(bytes, PageBytes()), std::max(alignment, kGranuleBytes),
                      /*with_pages=*/true);
  }

  // A block of `bytes` bytes, the first of which are the pages of [start, start +
  // old_bytes), moved and not copied: that range stays mapped and reads as zero.
  // `has_huge_pages` if the range has the advice. On nullptr it is as it was.
  [[nodiscard]] Huge* MoveIn(void* start, size_t old_bytes, size_t bytes,
                             Filling filling = Filling::kUnknown,
                             bool has_huge_pages = false)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Aborts with ReportFreedLargeBlock() when the block is not in use. `filling` is what
  // the program has done with it.
  void Deallocate(Huge* huge, Filling filling = Filling::kUnknown)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Makes the block `bytes` > 0 long, rounded up to pages, keeping its content
  // and alignment. May move it; new bytes read as zero. Copies nothing.
  [[nodiscard]] bool Resize(Huge* huge, size_t bytes,
                            Filling filling = Filling::kUnknown)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Makes the block at least `least_bytes` long, and `most_bytes` if there is
  // room, where it is. Returns its bytes, or 0 when it must stay shorter than
  // least_bytes, and then it is as it was. Requires least <= most.
  [[nodiscard]] size_t TryGrow(Huge* huge, size_t least_bytes,
                               size_t most_bytes)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // The block in use that starts at p, or nullptr. Takes no lock.
  static Huge* Of(const void* p);

  // The block, in use or kept for reuse, that contains p, or nullptr. Walks
  // all blocks: for error messages.
  Huge* Containing(const void* p) ABSL_LOCKS_EXCLUDED(lock_);

  // Unmaps what is kept for reuse; returns the bytes of what was not purged before.
  size_t Purge() ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // The same for what was freed before `time_ms`, a NowMs() at most 24 days
  // ago. Returns the bytes of all that it has unmapped.
  size_t PurgeFreedBefore(uint32_t time_ms)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  Statistics statistics() ABSL_LOCKS_EXCLUDED(lock_);

  // Walks everything and aborts if an invariant is broken.
  void Verify() ABSL_LOCKS_EXCLUDED(lock_);

  // For fork.
  Lock& purge_lock() ABSL_LOCK_RETURNED(purge_lock_) { return purge_lock_; }
  Lock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }

 private:
  // A list in order of age, newest first.
  struct List {
    Huge* newest = nullptr;
    Huge* oldest = nullptr;
    size_t blocks = 0;
    size_t bytes = 0;

    void PushNewest(Huge* huge);
    void Remove(Huge* huge);
    void Verify(bool in_use) const;
  };

  bool HasTooManyCached() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Unmaps what is kept above the bounds.
  void SeeToCached() ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);
  Huge* TakeCached(size_t bytes, size_t alignment, bool with_pages)
      ABSL_LOCKS_EXCLUDED(lock_);
  // A block that is in no list is in use from now on.
  void AddLive(Huge* huge) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // After what is live has become more.
  void NotePeak() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void Keep(Huge* huge) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void StopKeeping(Huge* huge) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // With the pages of [old_start, old_start + old_bytes), if there are any.
  Huge* MapFresh(size_t bytes, size_t alignment, Filling filling,
                 void* old_start = nullptr, size_t old_bytes = 0,
                 bool has_huge_pages = false)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Gives the block, of which pages are new, the advice that it needs.
  void AdvisePages(Huge* huge, Filling filling);

  // Unmaps the oldest block that is kept while `may_go` says so of it, with
  // lock_ held. Returns the bytes given back.
  template <typename MayGo>
  size_t DiscardOldest(MayGo may_go) ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Unmaps a block that is in no list.
  void Discard(Huge* huge);

  bool Move(Huge* huge, size_t bytes) ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);
  void SetExtent(Huge* huge, char* start, size_t bytes)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  PageSource& source_;
  MetadataPool& metadata_;
  Lock purge_lock_{LockRank::kHugePurge};
  Lock lock_{LockRank::kHuge};
  List live_ ABSL_GUARDED_BY(lock_);
  size_t peak_live_bytes_ ABSL_GUARDED_BY(lock_) = 0;
  List cached_ ABSL_GUARDED_BY(lock_);
  // Whether cached_ has blocks. Written under the lock; relaxed, since who sees an old value
  // maps pages where it need not, or takes the lock in vain.
  std::atomic<bool> keeps_any_{false};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_HUGE_H_
