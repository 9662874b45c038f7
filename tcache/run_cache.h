// The page runs that a thread keeps for its own next requests.
//
// A program that allocates and frees a buffer in a loop gets the same pages
// back each time, with neither a locked instruction nor a system call or a
// fault. Runs are kept in lists by size, the last put in first, which is why medium
// sizes are rounded to eight for each doubling (MediumBytes() in size_classes.h).
//
//   list      0      1     ...    8     ...   55
//   bytes    18 Ki  20 Ki       36 Ki        2 Mi    of each of its runs
//   top       -     run         run           -      the run put in last
//   start     ?      p           q            ?      where that starts
//                    |           |
//                   run         run                  by Run::next
//
// Runs are whole pages: where these have 4 KiB, lists 0, 2, 4 and 6 stay empty.
//
// A request that finds its list empty takes from one of the next two.
//
// What is kept serves requests of nearly its size alone, and others take fresh pages
// meanwhile, so it is not much: some runs of small sizes, or a large one by itself.
//
// Only the owner puts runs in. It and the maintenance thread take them out.
//
// Thread-safety: the lock of the thread cache guards all but cached_bytes(), for which
//   any thread may ask.
// Invariant: the sum of the runs' bytes is cached_bytes_, and nonempty_lists_ has the bits
//   of the lists that have one. Every run in a list is in state kCached, and its
//   `previous` is this cache.
// Errors: of a run that two threads free at once, and both keep, one of the two lists
//   is no longer whole. Who takes the run from the other than the last to put it in
//   aborts, before any list is followed beyond it.
// Size: fifteen cache lines, of which a thread of small blocks writes to none.
#ifndef QUARRY_TCACHE_RUN_CACHE_H_
#define QUARRY_TCACHE_RUN_CACHE_H_

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "arena/page_source.h"
#include "arena/report.h"
#include "arena/run.h"
#include "tcache/size_classes.h"

namespace quarry {

class RunCache {
 public:
  // Of all runs together, if there are several.
  static constexpr size_t kMostBytes = size_t{1} << 20;
  // Of one.
  static constexpr size_t kMostRunBytes = size_t{2} << 20;

  static constexpr size_t kLists = kStepsPerDoubling * std::countr_zero(
                                       kMostRunBytes / kSlabsOnlyMaxBytes);
  static constexpr size_t kNoList = kLists;

  constexpr RunCache()
      : cached_bytes_(0),
        tops_{},
        starts_{},
        nonempty_lists_(0),
        next_list_(0),
        least_bytes_(0),
        puts_(0),
        puts_at_pop_(0),
        puts_at_steal_(0) {}
  // Without a touch of it, which a thread of small blocks does not need.
  struct InZeroMemory {};
  explicit RunCache(InZeroMemory) {}
  RunCache(const RunCache&) = delete;
  RunCache& operator=(const RunCache&) = delete;

  // The list for requests of `bytes`, more than kSlabsOnlyMaxBytes and at most
  // kMostRunBytes: that of MediumBytes(bytes).
  ABSL_ATTRIBUTE_ALWAYS_INLINE static size_t ListFor(size_t bytes) {
    // Of the last byte of whole pages the four highest bits tell, and how high they are:
    // what the exponent and the first bits of a float are, beside each other.
    const size_t last = (bytes - 1) | (KnownPageBytes() - 1);
    return ExponentAndStep(static_cast<uint32_t>(last)) -
           ExponentAndStep(uint32_t{kSlabsOnlyMaxBytes});
  }

  // The list of a run of exactly `bytes` > 0 bytes, or kNoList: for one that is too
  // large, and the rest of what was rounded to whole pages alone.
  static size_t ListOfRun(size_t bytes) {
    if (bytes <= kSlabsOnlyMaxBytes || bytes > kMostRunBytes) return kNoList;
    return MediumBytes(bytes, KnownPageBytes()) == bytes ? ListFor(bytes) : kNoList;
  }

  // The same from the note that Put() made of it in the record of a run in use; kLists
  // or more if there is none, or the run is of no list. In a loop of allocation and free
  // the next request would wait for it to be computed before it could read the list.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static size_t NotedListOfRun(const Run* run) {
    return size_t{run->bin} - 1;
  }

  // Whether a list has a run.
  bool HasRun(size_t list) const {
    return list < kLists && (nonempty_lists_ >> list & 1) != 0;
  }

  // Takes the run that was put last into `list`, or, if that is empty, into the next of
  // the lists above it whose runs serve its requests as well: most of what these do not
  // touch lies in what was touched before, and where a run is cut to size, or a new one
  // is made, more pages are. It is in state kInUse and may hold anything. Returns where
  // it starts; nullptr if there is none.
  //
  // Which list that is no branch tells, since it is as often one as the other.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void* Take(size_t list) {
    const uint64_t lists = nonempty_lists_ >> list & ((2u << kLargerMediums) - 1);
    if (ABSL_PREDICT_FALSE(lists == 0)) return nullptr;
    list += static_cast<size_t>(std::countr_zero(lists));
    void* const start = starts_[list];
    Run* const run = tops_[list];
    Pop(list, run);
    run->state.store(Run::kInUse, std::memory_order_relaxed);
    return start;
  }

  // Keeps `run`, which is in use, starts at `start` and has so many bytes, in the list
  // that it is of; false if another would have to go.
  [[nodiscard]] ABSL_ATTRIBUTE_ALWAYS_INLINE bool TryPutIn(size_t list, Run* run,
                                                           void* start,
                                                           size_t bytes) {
    QUARRY_DCHECK(list == ListOfRun(bytes));
    const size_t cached_bytes = cached_bytes_ + bytes;
    if (ABSL_PREDICT_FALSE(cached_bytes > kMostBytes && cached_bytes_ != 0)) return false;
    run->state.store(Run::kCached, std::memory_order_relaxed);
    Push(list, run, start, cached_bytes);
    return true;
  }

  // Keeps `run`, whose state the caller has made kCached; false if it is of no list.
  // PopToFit() first, until there is none.
  [[nodiscard]] bool Put(Run* run) {
    const size_t list = ListOfRun(run->bytes());
    if (list == kNoList) return false;
    static_assert(kLists < UINT8_MAX);
    run->bin = static_cast<uint8_t>(list + 1);
    // A run that TryPutIn() keeps was kept before, as its note tells, and none has grown since.
    run->zeroed = false;
    run->has_grown = false;
    Push(list, run, run->start, cached_bytes_ + run->bytes());
    return true;
  }

  // Takes out `run`, which has or had so many bytes, if it is among the kMostLooks that
  // were put into its list last; else false. Its state stays kCached.
  [[nodiscard]] bool TryRemove(Run* run, size_t bytes) {
    const size_t list = ListOfRun(bytes);
    if (!HasRun(list)) return false;
    Run* above = tops_[list];
    if (above == run) {
      Pop(list, run);
      return true;
    }
    for (size_t looks = 1; looks < kMostLooks; ++looks) {
      CheckMark(above);
      Run* const next = above->next;
      if (next == run) {
        TakeOut(run);
        above->next = run->next;
        return true;
      }
      if (next == nullptr) return false;
      above = next;
    }
    return false;
  }
  static constexpr size_t kMostLooks = 32;

  // A run, of the lists in turn, if more than `keep_bytes` are kept; else nullptr. Its
  // state stays kCached.
  Run* PopAbove(size_t keep_bytes) {
    if (ABSL_PREDICT_TRUE(cached_bytes() <= keep_bytes)) return nullptr;
    size_t list = next_list_;
    while (tops_[list] == nullptr) list = (list + 1) % kLists;
    next_list_ = (list + 1) % kLists;
    Run* const run = tops_[list];
    Pop(list, run);
    return run;
  }

  // The same, if one has to go before a run of so many bytes is put in.
  Run* PopToFit(size_t bytes) {
    return PopAbove(kMostBytes - std::min(bytes, kMostBytes));
  }

  // A run, as PopAbove() chooses it, if none was put in since the last call.
  Run* PopIdle() {
    // Without a store, for a thread that has put none in ever.
    if (cached_bytes() == 0 ||
        std::exchange(puts_at_pop_, puts_) != puts_) {
      return nullptr;
    }
    return PopAbove(0);
  }

  // Takes out, and calls visit(run) for each, as many bytes as were not wanted since the
  // last call; all if the owner has put none in since then, or if it `is_urgent`. No
  // more than kMostStolen runs, if it is not: the owner may wait for the lock. Returns
  // whether any is left.
  template <typename Visit>
  bool StealIdle(bool is_urgent, Visit visit) {
    if (cached_bytes() == 0) return false;
    const bool is_idle = std::exchange(puts_at_steal_, puts_) == puts_;
    size_t unused_bytes = is_idle || is_urgent ? cached_bytes_ : least_bytes_;
    size_t left = is_urgent ? SIZE_MAX : kMostStolen;
    for (size_t list = 0; list < kLists; ++list) {
      Run* run;
      while (left > 0 && (run = tops_[list]) != nullptr &&
             run->bytes() <= unused_bytes) {
        unused_bytes -= run->bytes();
        --left;
        Pop(list, run);
        visit(run);
      }
    }
    least_bytes_ = cached_bytes_;
    return cached_bytes_ != 0;
  }
  static constexpr size_t kMostStolen = 64;

  // Aborts if the invariant is broken.
  void Verify() const {
    size_t bytes = 0;
    for (size_t list = 0; list < kLists; ++list) {
      const Run* run = tops_[list];
      QUARRY_CHECK(HasRun(list) == (run != nullptr));
      QUARRY_CHECK(run == nullptr || starts_[list] == run->start);
      for (; run != nullptr; run = run->next) {
        QUARRY_CHECK(ListOfRun(run->bytes()) == list);
        QUARRY_CHECK(run->previous == Mark());
        QUARRY_CHECK(run->state.load(std::memory_order_relaxed) == Run::kCached);
        bytes += run->bytes();
      }
    }
    QUARRY_CHECK(bytes == cached_bytes_);
  }

  // Any thread may ask.
  size_t cached_bytes() const {
    return std::atomic_ref<size_t>(const_cast<size_t&>(cached_bytes_))
        .load(std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t ExponentAndStep(uint32_t value) {
    constexpr int kFractionBits = std::numeric_limits<float>::digits - 1;
    static_assert(std::numeric_limits<float>::is_iec559 &&
                  2 * kMostRunBytes < size_t{1} << kFractionBits);
    // From a signed number, which takes one instruction.
    return std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(value))) >>
           (kFractionBits - std::countr_zero(kStepsPerDoubling));
  }

  // Under the lock. Relaxed: who reads it without that takes it for a hint.
  void SetCachedBytes(size_t bytes) {
    std::atomic_ref<size_t>(cached_bytes_).store(bytes, std::memory_order_relaxed);
  }

  ABSL_ATTRIBUTE_ALWAYS_INLINE void Push(size_t list, Run* run, void* start,
                                         size_t cached_bytes) {
    run->next = tops_[list];
    run->previous = Mark();
    starts_[list] = start;
    tops_[list] = run;
    nonempty_lists_ |= uint64_t{1} << list;
    SetCachedBytes(cached_bytes);
    ++puts_;
  }

  // `run` is the top.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void Pop(size_t list, Run* run) {
    TakeOut(run);
    Run* const next = run->next;
    tops_[list] = next;
    nonempty_lists_ ^= uint64_t{next == nullptr} << list;
    // Whatever, if there is no next: but no branch, since that is as often as not.
    starts_[list] = (next != nullptr ? next : run)->start;
  }

  // All but its links.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void TakeOut(Run* run) {
    CheckMark(run);
    run->previous = nullptr;
    const size_t left_bytes = cached_bytes_ - run->bytes();
    SetCachedBytes(left_bytes);
    if (left_bytes < least_bytes_) least_bytes_ = left_bytes;
  }

  void CheckMark(const Run* run) {
    if (ABSL_PREDICT_FALSE(run->previous != Mark())) {
      ReportFreedLargeBlock("free", run->start);
    }
  }

  // What tells a run of this cache from one of another, or of an arena's lists.
  Run* Mark() const {
    return reinterpret_cast<Run*>(const_cast<RunCache*>(this));
  }

  // None of these has a value of its own: see the constructors.

  size_t cached_bytes_;  // Read without the lock, too.
  Run* tops_[kLists];
  // Where the tops start, as the owner was told. In a loop of allocation and free each
  // turn would wait for the look-up of the record from the address, and for the
  // address in the record, if what is given out came from there.
  void* starts_[kLists];
  uint64_t nonempty_lists_;  // Bit i for list i.
  static_assert(kLists <= 64);
  size_t next_list_;    // To evict from.
  size_t least_bytes_;  // That there were since the last StealIdle().
  // How often the owner put a run in, and what that was at the last PopIdle() and
  // at the last StealIdle().
  uint32_t puts_;
  uint32_t puts_at_pop_;
  uint32_t puts_at_steal_;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_RUN_CACHE_H_
