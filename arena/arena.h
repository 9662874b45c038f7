#ifndef QUARRY_ARENA_ARENA_H_
#define QUARRY_ARENA_ARENA_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "arena/dirty_runs.h"
#include "arena/filling.h"
#include "arena/growth_history.h"
#include "arena/lock.h"
#include "arena/metadata.h"
#include "arena/page_map.h"
#include "arena/page_source.h"
#include "arena/run.h"
#include "arena/run_bins.h"
#include "arena/segment.h"
#include "arena/trim_slack.h"

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
//   top_     the run of the newest mapping: cut last, since it is the one that
//            is not touched yet.
//
// The algorithm, for a request of n pages:
//
//   1. Small (n <= 32): an exact fit from a bin; else the victim; else the best
//      fit of the bins, whose rest becomes the victim.
//   2. Large: the better fit of the bins and the victim.
//   3. Else top. 4. Else a new mapping, whose run becomes top.
//   It is cut from the run's low end, or, if more pages are resident there, from where
//   its last resident page ends.
//
// A freed run is joined at once with a free neighbour on either side.
//
// Mappings come in doubling sizes; one that touches a segment extends it. They
// are named in the page map: each of their granules has kRunTag and the
// Segment. Whoever puts something else there (a slab) puts it back before
// Deallocate().
//
// Free runs with dirty pages are listed by age as well, and purged oldest
// first: when they are old by the maintenance thread (tcache/maintenance.h),
// and when too much is dirty by the thread that frees. The system calls are
// made without the lock:
//
//   purge_lock_  |<------------ one step, at most 8 MiB ------------>|
//   lock_        |<- cut out ->|                        |<- put in ->|
//   the piece       kFree      |  kPurging: in no place  |   kFree
//
// The neighbours of the piece are not joined with it until it is back. fork()
// takes both locks, so a child never inherits a piece without its thread.
//
// Thread-safety: any thread.
// Invariant: mapped bytes = bytes of runs in use + bytes of free runs + bytes
//   of the run that is being purged.
//   No two neighbouring runs are both free.
//   free dirty pages = number of dirty bits over all free runs.
// Errors: nullptr, 0 or false when the page source or the pool refuses; nothing
//   has then changed.
// Cost: one lock; the logarithm of the largest run; no system call but for a
//   new mapping, for a purge when one is due, and with the lock held three for a huge
//   page, up to two before it to see whether an earlier range was filled, and the second
//   of two for a run on huge pages.
// Source: Doug Lea, "A Memory Allocator" (1996) and dlmalloc 2.8; purging by
//   age as in jemalloc (Evans), with one list in place of a smooth curve.
class Arena {
 public:
  struct Statistics {
    size_t mapped_bytes;
    size_t in_use_bytes;
    size_t free_bytes;        // mapped_bytes - in_use_bytes.
    size_t free_dirty_bytes;  // Of these, what a purge may give back: not what
                              // is being purged.
    size_t segments;          // Mappings side by side count as one.
    size_t in_use_runs;
    size_t free_runs;  // Likewise without the one that is being purged.

    friend bool operator==(const Statistics&, const Statistics&) = default;
  };

  // The first segment. Each next one is as much as there is and as the first, rounded
  // down to a power of two, up to the largest.
  static constexpr size_t kFirstSegmentBytes = size_t{4} << 20;
  static constexpr size_t kLargestSegmentBytes = size_t{64} << 20;

  // The record of a slab, at most; the room of slabs says so of each class.
  static constexpr size_t kMostSlabRecordBytes = 1152;

  // The most that one step purges: a millisecond or so, for which fork() and
  // a request that needs just this run wait.
  static constexpr size_t kPurgeStepBytes = size_t{8} << 20;

  // The most that one free purges because too much is dirty: some milliseconds.
  // No run that the room above takes is larger, so it keeps up with the frees.
  static constexpr size_t kMostCapPurgeBytes = 4 * kPurgeStepBytes;
  // And the most steps of that: where each run has a dirty page or two, so many are as many
  // calls of the system.
  static constexpr size_t kMostCapPurgeSteps = 16;

  // With so much in use, what is resident too early for a huge page is little
  // beside it.
  static constexpr size_t kGrownBytes = kHugePageBytes + kHugePageBytes / 2;

  // Where the system had none so often in a row, twice as much as now must be in use
  // before it is asked again. Once, and the range may be the reason: Linux makes none
  // where there were small pages, while it keeps the table of those.
  static constexpr uint32_t kMostHugePageFailures = 4;

  // Purge() leaves a shorter free end of a segment mapped: to map it again
  // costs more than its page tables.
  static constexpr size_t kLeastTrimBytes = size_t{1} << 20;

  constexpr Arena(PageSource& source, MetadataPool& metadata,
                  uint32_t index = 0)
      : source_(source), metadata_(metadata), index_(index) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // `pages` > 0 pages that start at a multiple of `alignment`, a power of two.
  // No more than the needed pages are used. Run::zeroed tells whether all bytes
  // are known to be zero.
  //
  // What will be filled, as the caller knows or GrowthHistory expects, lies on huge pages
  // where much is in use already: the first run that reaches into a huge page's worth of
  // pages of which none is resident makes all of them resident, if settings and the system
  // have it so. Those behind the run are free and dirty then: what is not soon allocated
  // goes back with the next that is freed.
  [[nodiscard]] Run* Allocate(size_t pages, size_t alignment,
                              Filling filling = Filling::kUnknown)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Asks for huge pages for all of `run`, which is in use and new and will be filled, until
  // it is freed or resized: what a purge leaves of it is to be small pages again.
  void PreferHugePages(Run* run) {
    run->has_huge_pages = true;
    source_.PreferHugePages(run->start, run->bytes());
  }

  // Notes that the block for which `run` was allocated has grown before. What a thread's cache
  // noted of the run is forgotten, so that the note ends with the block.
  static void NoteGrown(Run* run) {
    run->has_grown = true;
    run->bin = 0;
  }

  // Aborts with ReportFreedLargeBlock() when the run is not in use. Only its
  // first `touched_pages` may have been touched: what lies behind is as it was
  // when the run was allocated.
  //
  // Sees to dirty runs, as Shrink() does: purges when more is dirty than
  // settings allow, unless the maintenance thread is awake and will; tells that
  // thread.
  void Deallocate(Run* run, size_t touched_pages)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);
  void Deallocate(Run* run) ABSL_LOCKS_EXCLUDED(purge_lock_, lock_) {
    Deallocate(run, run->pages);
  }

  // The same for a run whose pages were moved elsewhere (PageSource::MoveOut):
  // they are not resident and read as zero.
  void DeallocateMovedOut(Run* run) ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Extends the run into the free run behind it, to as many as possible of
  // run->pages <= least_pages <= most_pages pages. Returns how many it has
  // then, or 0 when least_pages are not to be had; the run is then as it was.
  // The new pages may hold anything.
  [[nodiscard]] size_t TryGrow(Run* run, size_t least_pages, size_t most_pages)
      ABSL_LOCKS_EXCLUDED(lock_);

  // The first run behind `run` that a thread keeps, and its bytes, if run and all that is
  // free or kept right behind it make least_pages; else nullptr. By the time of the
  // return that thread may have used it.
  Run* KeptBehind(const Run* run, size_t least_pages, size_t* bytes)
      ABSL_LOCKS_EXCLUDED(lock_);

  // Gives back all but the first `pages` > 0 pages; leaves the run as it is if
  // there is no memory for the record of the rest.
  void Shrink(Run* run, size_t pages) ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // The run in use that starts at p, or nullptr. Takes no lock. p may be any
  // address, or, for the second, any whose tag is kRunTag.
  static Run* RunOf(const void* p) {
    return PageMap::TagOf(p) == kRunTag ? RunStartingAt(p) : nullptr;
  }
  static Run* RunStartingAt(const void* p) {
    return RunStartingAt(p, PageMap::DescriptorOf(p));
  }
  // The same for who knows what descriptor the page map has for p.
  static Run* RunStartingAt(const void* p, const void* descriptor) {
    const Segment* const segment = static_cast<const Segment*>(descriptor);
    Run* const run = segment->TagAt(segment->PageOf(p));
    if (run == nullptr || run->start != p || !run->IsInUse()) return nullptr;
    return run;
  }

  // The run, free or in use, that contains p, or nullptr. Walks a segment: for
  // error messages. p may be any address.
  static Run* RunContaining(const void* p);

  // These three purge dirty runs, oldest first, and return how many bytes went
  // back. What the system refuses (locked memory) stays dirty and counts as
  // just freed.

  // Purges what was freed before time_ms, a time by NowMs() at most 24 days
  // ago, and of that at most `most_bytes`. Leaves the rest to the next call when
  // a request waits for a run that was being purged, as does PurgeOverCap().
  size_t PurgeFreedBefore(uint32_t time_ms, size_t most_bytes = SIZE_MAX)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Purges at most `most_bytes`, in at most so many steps, if more is dirty than settings
  // allow: down to half of that, or kMostCapPurgeBytes below it, so that the next free
  // does not purge again.
  //
  // That is settings.trim_threshold_bytes, and nothing when settings.decay_ms
  // is 0. But a program that replaces large blocks has as much free at any time
  // as it is about to use again, and to purge that costs it a fault for each
  // page. So while what is free goes back in time anyhow, by the maintenance
  // thread, and the user has set no threshold, half of what is in use may be
  // dirty beside it, and more than the threshold where that purged in vain
  // (arena/trim_slack.h).
  size_t PurgeOverCap(size_t most_bytes = SIZE_MAX, size_t most_steps = SIZE_MAX)
      ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // Purges until at most keep_bytes are dirty. Before, unmaps segments that are
  // wholly free, and free ends of others, while keep_bytes stay free. Returns the bytes of
  // the pages that were dirty: other addresses were not memory.
  size_t Purge(size_t keep_bytes) ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  // What a purge may give back. Takes no lock.
  size_t FreeDirtyBytes() const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return dirty_.pages() * PageBytes();
  }

  Statistics statistics() ABSL_LOCKS_EXCLUDED(lock_);

  // Walks everything and aborts if an invariant is broken.
  void Verify() ABSL_LOCKS_EXCLUDED(lock_);

  uint32_t index() const { return index_; }

  // For fork.
  Lock& purge_lock() ABSL_LOCK_RETURNED(purge_lock_) { return purge_lock_; }
  Lock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }

 private:
  static constexpr size_t kMostPages = size_t{1} << 30;

  // What one call may need: the run of a new mapping, and what is cut out of a
  // run and lies behind that.
  static constexpr size_t kMostNewRecords = 3;
  // One more is always left, for Trim(): where there is no memory for a record,
  // what is free must be able to go back.
  static constexpr size_t kReservedRecords = 1;

  // Where a free run is kept.
  enum class Place { kBin, kVictim, kTop };

  // What is purged: what is old, what is more than may be dirty, what the program says.
  enum class PurgeReason { kAge, kCap, kRequest };

  // What one call may purge, and what has come of it.
  struct PurgePass {
    PurgeReason reason;
    size_t keep_bytes = 0;   // So much may stay dirty.
    uint32_t before_ms = 0;  // By age, what was freed before.
    bool gives_way = true;  // Ends early when a request waits for the lock.

    // At first what may be asked for at most. PurgeAll() takes no more than was
    // dirty when the pass began, and so ends a pass that other threads keep
    // supplied, or that is refused.
    size_t left_bytes = SIZE_MAX;
    size_t left_steps = SIZE_MAX;
    size_t purged_bytes = 0;
    bool refused = false;
  };

  // Free pages that Purge() unmaps, out of all structures.
  struct Unmapping {
    char* start;
    size_t bytes;
    Segment* segment;  // To be discarded, or nullptr.
  };

  // Records are stocked before anything changes, so that no call fails halfway.
  bool StockRecords() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  Run* TakeRecord(Segment* segment, char* start, uint32_t pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void RecycleRecord(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Allocate() without what it sees to afterwards. A request that only the run
  // that is being purged could serve sets *wait, if that is not nullptr.
  Run* TryAllocate(uint32_t pages, size_t alignment, Filling filling,
                   bool* wait) ABSL_LOCKS_EXCLUDED(lock_);

  // Whether a huge page is to begin where a new run does, or within it. It was asked
  // for then; TouchHugePage() gets it. Requires that as much is in use as one needs.
  bool TryPreferHugePage(const Run* run, Filling filling)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void TouchHugePage(Run* run) ABSL_LOCKS_EXCLUDED(lock_);
  void EndHugePages(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void ForgetHugePage(const Run* run, const char* end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Maps more. Returns the free run that it is part of, or nullptr.
  Run* AddMapping(uint32_t pages, size_t alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  Run* MapRun(size_t bytes, size_t alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  Segment* SegmentFor(char* start, uint32_t pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void RemoveSegment(Segment* segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // The free run that serves a request best, still in its place.
  Run* FindFit(uint32_t pages, size_t alignment) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Cuts the request out of a free run that has room for it.
  Run* Carve(Run* run, uint32_t pages, size_t alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Cuts a part out of a free run that is in no place, and puts what is left
  // into places, the larger piece into `place`. The part is in none, is not
  // listed as dirty, and has its dirty pages counted. Needs two records, or
  // none when the part is the whole.
  Run* CutOut(Run* run, uint32_t before, uint32_t pages, Place place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Frees a run in use.
  void Free(Run* run, uint32_t touched_pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Joins a free run that is in no place with its free neighbours and puts it
  // into `place`, or that of a neighbour. Returns the run that it is then.
  Run* Settle(Run* run, Place place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Makes one run of two neighbours that are in no place.
  Run* Join(Run* low, Run* high) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Puts a free run into a place; who was the victim or top goes to a bin.
  void Put(Run* run, Place place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Takes a free run out of its place, and tells which that was.
  Place Take(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  size_t free_bytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    return (mapped_pages_ - in_use_pages()) * PageBytes();
  }

  // Without the lock, a moment old.
  size_t in_use_pages() const {
    return in_use_pages_.load(std::memory_order_relaxed);
  }
  void CountInUse(size_t pages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    in_use_pages_.store(pages, std::memory_order_relaxed);
  }

  // Whether that may be more than the threshold: the user has set none, and what is free
  // goes back in time anyhow.
  static bool CapAdapts();
  // Whether it rises by trim_slack_, too: not where memory is short.
  static bool CapHasSlack();
  // What may be dirty before the thread that frees purges. Takes no lock.
  size_t CapBytes() const ABSL_NO_THREAD_SAFETY_ANALYSIS;

  // After a free: purges what is too much, and sees to it that what is old will
  // be purged.
  void SeeToDirtyRuns() ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);

  void PurgeAll(PurgePass* pass) ABSL_LOCKS_EXCLUDED(purge_lock_, lock_);
  // False when the pass is over.
  bool PurgeStep(PurgePass* pass) ABSL_EXCLUSIVE_LOCKS_REQUIRED(purge_lock_)
      ABSL_LOCKS_EXCLUDED(lock_);
  Run* BeginPurge(const PurgePass& pass, Place* origin)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(purge_lock_, lock_);
  void EndPurge(Run* piece, Place origin, PageSource::Purged purged,
                PurgePass* pass)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(purge_lock_, lock_);

  // Unmaps one segment or end of a segment, and adds what of it was dirty. Returns whether
  // there was one.
  bool UnmapOne(size_t keep_bytes, size_t* dirty_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(purge_lock_) ABSL_LOCKS_EXCLUDED(lock_);
  bool FindUnmapping(size_t keep_bytes, Unmapping* found)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Takes a part of a free run, which is an end of its segment, away from the
  // segment and the page map. Borrows a record.
  void Trim(Run* run, uint32_t before, uint32_t pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  PageSource& source_;
  MetadataPool& metadata_;
  const uint32_t index_;
  // Held while something of the arena is neither free nor in use.
  Lock purge_lock_{LockRank::kPurge};
  Lock lock_{LockRank::kArena};
  RunBins bins_ ABSL_GUARDED_BY(lock_);
  Run* victim_ ABSL_GUARDED_BY(lock_) = nullptr;
  Run* top_ ABSL_GUARDED_BY(lock_) = nullptr;
  Segment* segments_ ABSL_GUARDED_BY(lock_) = nullptr;

  Run* spare_records_ ABSL_GUARDED_BY(lock_) = nullptr;  // Linked by next.
  size_t spares_ ABSL_GUARDED_BY(lock_) = 0;

  size_t mapped_pages_ ABSL_GUARDED_BY(lock_) = 0;
  // A plain counter that only the holder of the lock writes.
  std::atomic<size_t> in_use_pages_{0};
  size_t segment_count_ ABSL_GUARDED_BY(lock_) = 0;
  size_t in_use_runs_ ABSL_GUARDED_BY(lock_) = 0;
  size_t free_runs_ ABSL_GUARDED_BY(lock_) = 0;

  // So much must be in use for the next huge page.
  size_t huge_from_bytes_ ABSL_GUARDED_BY(lock_) = kGrownBytes;
  GrowthHistory growth_ ABSL_GUARDED_BY(lock_);
  // How often the system had none since it had one.
  uint32_t huge_page_failures_ ABSL_GUARDED_BY(lock_) = 0;

  DirtyRuns dirty_ ABSL_GUARDED_BY(lock_);
  TrimSlack trim_slack_ ABSL_GUARDED_BY(lock_);
  Run* purging_ ABSL_GUARDED_BY(lock_) = nullptr;
  // Whether a request waits for purge_lock_.
  bool is_waited_for_ ABSL_GUARDED_BY(lock_) = false;
  // After a purge that the system refused: what may be dirty until the next.
  // A plain number: what two threads make of it at once is as good as either.
  std::atomic<size_t> stubborn_dirty_bytes_{0};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_ARENA_H_
