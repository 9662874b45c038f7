#ifndef QUARRY_ARENA_RUN_H_
#define QUARRY_ARENA_RUN_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "arena/page_source.h"

namespace quarry {

class Arena;
class Segment;

// Contiguous pages of one segment, free or in use: what dlmalloc calls a
// chunk, with its boundary tags kept out of band.
//
// A segment is tiled by runs. Its page table names each run at the run's first
// and last page, so that both neighbours of a run are one look-up away.
//
//   pages   |  0    1    2    3    4    5    6    7  |
//   runs    [   A: 3 pages  ][ B ][   C: 4 pages     ]
//   table   |  A    -    A  |  B  |  C    -    -   C |
//
// Thread-safety: `start`, `pages`, `segment`, `zeroed`, `is_fresh`, `begins_huge_page`,
//   `has_huge_pages` and `has_grown` of a run in use may be read by whoever was given it.
//   While a thread keeps it, `next` and `previous` are that thread's cache's, and so is `bin`
//   until it is freed. All else under the arena's lock.
// Invariant: no two neighbouring runs are both free.
// Size: two cache lines; the second is of use only while some page is dirty.
struct alignas(64) Run {
  char* start = nullptr;
  Segment* segment = nullptr;
  uint32_t pages = 0;

  // Who holds the run. Atomic only so that a wrong free() that reads it beside
  // the lock is reported and not a data race. Written under the arena's lock,
  // but between kInUse and kCached, by the thread that holds the run.
  enum State : uint8_t {
    kFree,     // The arena: it is in one of its places.
    kInUse,    // The program, or a slab.
    kCached,   // A thread, for its next request of the size.
    kPurging,  // A thread that gives its pages back without the arena's lock.
  };
  std::atomic<State> state{kFree};

  bool IsFree() const { return state.load(std::memory_order_relaxed) == kFree; }
  bool IsInUse() const {
    return state.load(std::memory_order_relaxed) == kInUse;
  }

  // Whether it was given back, so that who frees it now does so wrongly.
  bool WasFreed() const {
    const State now = state.load(std::memory_order_relaxed);
    return now == kFree || now == kPurging;
  }

  // Whether every byte was known to be zero when Arena::Allocate() gave the
  // run out, or TryGrow() what it has more.
  bool zeroed = false;

  // Whether, as far as is known, none of its pages was resident when it was given out, and
  // only the program's touches make them so.
  bool is_fresh : 1 = false;
  // Whether a huge page was to begin with one of its pages when it was given out.
  bool begins_huge_page : 1 = false;
  // Whether it has the advice to be on huge pages, as far as whole ones fit.
  bool has_huge_pages : 1 = false;
  // Whether it is in use by a block that has grown, and may do so again.
  bool has_grown : 1 = false;

  // While free and in a bin: the bin, and the ring of runs of the same size. While in
  // use or kept by a thread, `bin` is a note that the threads' caches make of its size,
  // and 0 as long as they have made none of the size that it has now.
  uint8_t bin = 0;
  Run* next = nullptr;
  Run* previous = nullptr;

  // While in a tree bin: of each ring one run is a node of the tree, and its
  // `parent` is set; a root's parent is itself. See run_bins.h.
  Run* parent = nullptr;
  Run* child[2] = {nullptr, nullptr};

  // While free: how many of its pages are dirty; if any are, since when by
  // NowMs(), and the neighbours in age. See dirty_runs.h.
  uint32_t dirty_pages = 0;
  uint32_t freed_ms = 0;
  Run* older = nullptr;
  Run* newer = nullptr;

  size_t bytes() const { return pages * KnownPageBytes(); }
  char* end() const { return start + bytes(); }
  inline Arena* arena() const;  // Defined in segment.h.
};

// Whether there is a run, and it is free.
inline bool IsFree(const Run* run) { return run != nullptr && run->IsFree(); }

static_assert(sizeof(Run) == 128, "a run's record is two cache lines");
static_assert(offsetof(Run, dirty_pages) == 64,
              "what every request reads is in the first line");

}  // namespace quarry

#endif  // QUARRY_ARENA_RUN_H_
