#ifndef QUARRY_ARENA_ARENA_H_
#define QUARRY_ARENA_ARENA_H_

#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "arena/lock.h"
#include "arena/metadata.h"
#include "arena/page_source.h"
#include "arena/run.h"
#include "arena/run_bins.h"
#include "arena/segment.h"

namespace quarry {

// Page runs from segments: dlmalloc with the page as its unit, its boundary
// tags out of band, and one lock.
//
// A free run is in exactly one of three places:
//
//   bins_    by size: the best fit is found there;
//   victim_  the designated victim, what was left of the last run split for
//            a small request: the next small one without an exact fit is cut
//            from it, so that consecutive requests lie side by side;
//   top_     the run at the end of the newest segment: cut last, since it is
//            the one that is not touched yet.
//
// The algorithm, for a request of n pages:
//
//   1. Small (n <= 32): an exact fit from a bin; else the victim; else the best
//      fit of the bins, whose rest becomes the victim.
//   2. Large: the better fit of the bins and the victim.
//   3. Else top. 4. Else a new segment, whose run becomes top.
//
// A freed run is joined at once with a free neighbour on either side.
//
// Segments are mapped in doubling sizes and named in the page map: each of
// their granules has kRunTag and the Segment. Whoever puts something else there
// (a slab) puts it back before Deallocate().
//
// Thread-safety: any thread.
// Invariant: mapped bytes = bytes of runs in use + bytes of free runs.
//   No two neighbouring runs are both free.
//   free dirty pages = number of dirty bits over all free runs.
// Errors: nullptr or false when the page source or the pool refuses; nothing
//   has then changed.
// Cost: one lock; the logarithm of the largest run; no system call but for a
//   new segment and a purge.
// Source: Doug Lea, "A Memory Allocator" (1996) and dlmalloc 2.8.
class Arena {
 public:
  struct Statistics {
    size_t mapped_bytes;
    size_t in_use_bytes;
    size_t free_bytes;        // mapped_bytes - in_use_bytes.
    size_t free_dirty_bytes;  // Of these, what a purge may give back.
    size_t segments;
    size_t in_use_runs;
    size_t free_runs;

    friend bool operator==(const Statistics&, const Statistics&) = default;
  };

  // The first segment; each next one is twice the last, up to the largest.
  static constexpr size_t kFirstSegmentBytes = size_t{4} << 20;
  static constexpr size_t kLargestSegmentBytes = size_t{64} << 20;

  constexpr Arena(PageSource& source, MetadataPool& metadata,
                  uint32_t index = 0)
      : source_(source), metadata_(metadata), index_(index) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // `pages` > 0 pages that start at a multiple of `alignment`, a power of two.
  // No more than the needed pages are used. Run::zeroed tells whether all bytes
  // are known to be zero.
  [[nodiscard]] Run* Allocate(size_t pages, size_t alignment)
      ABSL_LOCKS_EXCLUDED(lock_);

  // Aborts with ReportFreedLargeBlock() when the run is not in use. Purges, as
  // Shrink() does, when more than settings.trim_threshold_bytes are free and
  // dirty, down to half of that, so that the next free does not purge again.
  void Deallocate(Run* run) ABSL_LOCKS_EXCLUDED(lock_);

  // Extends the run to `pages` >= run->pages pages into the free run behind it.
  // The new pages may hold anything.
  [[nodiscard]] bool Grow(Run* run, size_t pages) ABSL_LOCKS_EXCLUDED(lock_);

  // Gives back all but the first `pages` > 0 pages; leaves the run as it is if
  // there is no memory for the record of the rest.
  void Shrink(Run* run, size_t pages) ABSL_LOCKS_EXCLUDED(lock_);

  // The run in use that starts at p, or nullptr. Takes no lock. p may be any
  // address.
  static Run* RunOf(const void* p);

  // The run, free or in use, that contains p, or nullptr. Walks a segment: for
  // error messages. p may be any address.
  static Run* RunContaining(const void* p);

  // Gives free memory back to the OS until at most keep_bytes of it are dirty:
  // unmaps segments that are wholly free while keep_bytes stay free, then
  // purges dirty pages, those of large runs first. Returns how many bytes were
  // unmapped or purged.
  size_t Purge(size_t keep_bytes) ABSL_LOCKS_EXCLUDED(lock_);

  Statistics statistics() ABSL_LOCKS_EXCLUDED(lock_);

  // Walks everything and aborts if an invariant is broken.
  void Verify() ABSL_LOCKS_EXCLUDED(lock_);

  uint32_t index() const { return index_; }
  Lock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }  // For fork.

 private:
  static constexpr size_t kMostPages = size_t{1} << 30;

  // What one call may need: the run of a new segment, and what is left before
  // and behind the place of a request.
  static constexpr size_t kMostNewRecords = 3;

  // Records are stocked before anything changes, so that no call fails halfway.
  bool StockRecords() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  Run* TakeRecord(Segment* segment, char* start, uint32_t pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void RecycleRecord(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  bool AddSegment(uint32_t pages, size_t alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void RemoveSegment(Segment* segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // The free run that serves a request best, still in its place.
  Run* FindFit(uint32_t pages, size_t alignment) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Cuts the request out of a free run and puts what is left into places.
  Run* Carve(Run* run, uint32_t pages, size_t alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Frees a run in use and joins it with its free neighbours.
  void Free(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Where a free run is kept.
  enum class Place { kBin, kVictim, kTop };

  // Puts a free run into a place; who was the victim or top goes to a bin.
  void Put(Run* run, Place place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Takes a free run out of its place, and tells which that was.
  Place Take(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  size_t free_bytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    return (mapped_pages_ - in_use_pages_) * PageBytes();
  }
  size_t free_dirty_bytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    return free_dirty_pages_ * PageBytes();
  }

  void PurgeIfTooDirty() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  size_t PurgeDownTo(size_t keep_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  size_t PurgeRun(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  PageSource& source_;
  MetadataPool& metadata_;
  const uint32_t index_;
  Lock lock_{LockRank::kArena};
  RunBins bins_ ABSL_GUARDED_BY(lock_);
  Run* victim_ ABSL_GUARDED_BY(lock_) = nullptr;
  Run* top_ ABSL_GUARDED_BY(lock_) = nullptr;
  Segment* segments_ ABSL_GUARDED_BY(lock_) = nullptr;
  // After a purge that the system refused: what may be dirty until the next.
  size_t stubborn_dirty_bytes_ ABSL_GUARDED_BY(lock_) = 0;
  size_t next_segment_bytes_ ABSL_GUARDED_BY(lock_) = kFirstSegmentBytes;

  Run* spare_records_ ABSL_GUARDED_BY(lock_) = nullptr;  // Linked by next.
  size_t spares_ ABSL_GUARDED_BY(lock_) = 0;

  size_t mapped_pages_ ABSL_GUARDED_BY(lock_) = 0;
  size_t in_use_pages_ ABSL_GUARDED_BY(lock_) = 0;
  size_t free_dirty_pages_ ABSL_GUARDED_BY(lock_) = 0;
  size_t segment_count_ ABSL_GUARDED_BY(lock_) = 0;
  size_t in_use_runs_ ABSL_GUARDED_BY(lock_) = 0;
  size_t free_runs_ ABSL_GUARDED_BY(lock_) = 0;
};

}  // namespace quarry

#endif  // QUARRY_ARENA_ARENA_H_
