// The page runs that a thread keeps for its own next requests.
//
// A program that allocates and frees a buffer in a loop gets the same pages
// back each time, with neither a locked instruction nor a system call or a
// fault. A run is found by its exact size, which is why medium sizes are
// rounded to eight for each doubling (MediumBytes() in size_classes.h).
//
//   slot      0      1      2     ...
//   run      run    run     -            what the slot holds
//   start     p      q      ?            where it starts
//   bytes   100 Ki  36 Ki   0            its size; 0 is an empty slot
//
// Only the owner puts runs in. It and the maintenance thread take them out.
//
// Thread-safety: the lock of the thread cache guards all but Find() and FindRoom(),
//   which the owner may call without it, and cached_bytes(), which any thread may.
// Invariant: the sum of bytes_[i] is cached_bytes_; bytes_[i] == 0 exactly when
//   runs_[i] == nullptr. Every run in a slot is in state kCached.
// Size: three cache lines.
#ifndef QUARRY_TCACHE_RUN_CACHE_H_
#define QUARRY_TCACHE_RUN_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "arena/page_source.h"
#include "arena/run.h"

namespace quarry {

class RunCache {
 public:
  static constexpr size_t kSlots = 8;
  // Of all runs together, and of one.
  static constexpr size_t kMostBytes = size_t{4} << 20;
  static constexpr size_t kMostRunBytes = kMostBytes / 2;
  // So much is kept with a look alone.
  static constexpr size_t kFewBytes = size_t{1} << 20;

  constexpr RunCache() = default;
  RunCache(const RunCache&) = delete;
  RunCache& operator=(const RunCache&) = delete;

  // A slot with a run of exactly `bytes` > 0 bytes, or kSlots. It may be empty
  // when the lock has been taken.
  ABSL_ATTRIBUTE_ALWAYS_INLINE size_t Find(size_t bytes) const {
    size_t i = 0;
    while (i < kSlots && bytes_[i].load(std::memory_order_relaxed) != bytes) ++i;
    return i;
  }

  // Takes the run of a slot, in state kInUse, which may hold anything, and where it
  // starts; nullptr if the slot is empty.
  ABSL_ATTRIBUTE_ALWAYS_INLINE Run* Take(size_t slot, void** start) {
    Run* const run = runs_[slot];
    *start = starts_[slot];
    if (ABSL_PREDICT_FALSE(run == nullptr)) return nullptr;
    Remove(slot);
    run->zeroed = false;
    run->state.store(Run::kInUse, std::memory_order_relaxed);
    return run;
  }

  // An empty slot for a run of so many bytes, if little is kept; else kSlots.
  ABSL_ATTRIBUTE_ALWAYS_INLINE size_t FindRoom(size_t bytes) const {
    return cached_bytes() + bytes <= kFewBytes ? Find(0) : kSlots;
  }

  // Keeps `run`, which is in use, of `bytes` bytes from `start` on, in such a slot.
  //
  // Two threads that free it at once may both get here. The arena finds that
  // out when it is given the run a second time.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void PutIn(size_t slot, Run* run, void* start,
                                          size_t bytes) {
    run->state.store(Run::kCached, std::memory_order_relaxed);
    Fill(slot, run, start, bytes);
  }

  // Keeps `run`, whose state the caller has made kCached. Returns the run that
  // must go to its arena for that, if any: one put in earlier, or `run` itself.
  Run* Put(Run* run) {
    const size_t bytes = run->bytes();
    if (bytes > kMostRunBytes) return run;
    Run* evicted = nullptr;
    size_t slot = Find(0);
    if (slot == kSlots) {
      slot = next_evicted_++ % kSlots;
      evicted = runs_[slot];
      Remove(slot);
    }
    Fill(slot, run, run->start, bytes);
    return evicted;
  }

  // Any run while more than `keep_bytes` are kept, the oldest as far as is
  // known; else nullptr. Its state stays kCached.
  Run* PopAbove(size_t keep_bytes) {
    if (ABSL_PREDICT_TRUE(cached_bytes() <= keep_bytes)) return nullptr;
    for (size_t tries = 0; tries < kSlots; ++tries) {
      const size_t slot = next_evicted_++ % kSlots;
      if (Run* run = runs_[slot]) {
        Remove(slot);
        return run;
      }
    }
    return nullptr;
  }

  // A run, as PopAbove() chooses it, if none was put in since the last call.
  Run* PopIdle() {
    if (std::exchange(puts_at_pop_, puts_) != puts_) return nullptr;
    return PopAbove(0);
  }

  // Takes all runs out if the owner has put none in since the last call, or if it
  // `is_urgent`, and calls visit(run) for each. Returns whether any is left.
  template <typename Visit>
  bool StealIdle(bool is_urgent, Visit visit) {
    if (cached_bytes() == 0) return false;
    if (std::exchange(puts_at_steal_, puts_) != puts_ && !is_urgent) return true;
    while (Run* run = PopAbove(0)) visit(run);
    return false;
  }

  // Any thread may ask.
  size_t cached_bytes() const {
    return cached_bytes_.load(std::memory_order_relaxed);
  }

 private:
  void Fill(size_t slot, Run* run, void* start, size_t bytes) {
    starts_[slot] = start;
    runs_[slot] = run;
    bytes_[slot].store(static_cast<uint32_t>(bytes), std::memory_order_relaxed);
    cached_bytes_.store(cached_bytes() + bytes, std::memory_order_relaxed);
    ++puts_;
  }

  void Remove(size_t slot) {
    const size_t bytes = bytes_[slot].load(std::memory_order_relaxed);
    cached_bytes_.store(cached_bytes() - bytes, std::memory_order_relaxed);
    bytes_[slot].store(0, std::memory_order_relaxed);
    runs_[slot] = nullptr;
  }

  std::atomic<uint32_t> bytes_[kSlots] = {};
  std::atomic<size_t> cached_bytes_{0};
  uint32_t next_evicted_ = 0;
  // How often the owner put a run in, and what that was at the last PopIdle() and
  // at the last StealIdle().
  uint32_t puts_ = 0;
  uint32_t puts_at_pop_ = 0;
  uint32_t puts_at_steal_ = 0;
  // Where they start, as the owner was told. In a loop of allocation and free each
  // turn would wait for the look-up of the record from the address, and for the
  // address in the record, if what is given out came from there.
  void* starts_[kSlots] = {};
  Run* runs_[kSlots] = {};
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_RUN_CACHE_H_
