#ifndef QUARRY_ARENA_DIRTY_RUNS_H_
#define QUARRY_ARENA_DIRTY_RUNS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "arena/run.h"

namespace quarry {

// The free runs of one arena that have dirty pages, oldest first: what a purge
// takes its work from.
//
//   oldest_ -> run <-> run <-> run <- newest_
//              freed_ms rises ------>
//
// A run's age is when its pages were freed. Where runs of two ages become one,
// that of the part with more dirty pages is kept: a large region that is idle
// does not stay young because small pieces at its edge come and go. Where a run
// becomes two, both keep the age.
//
// Thread-safety: under the arena's lock, but for pages().
// Invariant: a run is listed iff run->dirty_pages > 0.
//   pages() = sum of dirty_pages over the listed runs.
// Cost: O(1) each.
class DirtyRuns {
 public:
  constexpr DirtyRuns() = default;
  DirtyRuns(const DirtyRuns&) = delete;
  DirtyRuns& operator=(const DirtyRuns&) = delete;

  // The run, with its dirty pages counted, becomes the newest. Requires that
  // no time before was later.
  void Add(Run* run, uint32_t now_ms);

  // The run leaves the list and keeps its count.
  void Remove(Run* run);

  // So many dirty pages of the run are no longer free.
  void Reduce(Run* run, uint32_t pages);

  // So many clean pages of the run, which is free, are dirty since now. As in
  // Join(), it has the age of the larger part.
  void Raise(Run* run, uint32_t pages, uint32_t now_ms);

  // `low` gets the dirty pages of `high`, which has none then.
  void Join(Run* low, Run* high);

  // `part` gets so many dirty pages of the run, and its age.
  void Split(Run* run, Run* part, uint32_t pages);

  Run* oldest() const { return oldest_; }

  // May be called without the lock, and is then a moment old.
  size_t pages() const { return pages_.load(std::memory_order_relaxed); }

  // Aborts if an invariant is broken. Stores how many runs are listed.
  void Verify(size_t* runs) const;

 private:
  // Where `run` goes: behind `older`, or first if that is nullptr.
  void Link(Run* run, Run* older);
  void Unlink(Run* run);

  // A plain counter that only the holder of the lock writes.
  void Count(size_t pages) {
    pages_.store(this->pages() + pages, std::memory_order_relaxed);
  }

  Run* oldest_ = nullptr;
  Run* newest_ = nullptr;
  std::atomic<size_t> pages_{0};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_DIRTY_RUNS_H_
