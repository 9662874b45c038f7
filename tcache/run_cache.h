// The page runs that a thread keeps for its own next requests.
//
// A program that allocates and frees a buffer in a loop gets the same pages
// back each time, with neither a lock nor a locked instruction, a system call
// or a fault. A run is found by its exact size, which is why medium sizes are
// rounded to eight for each doubling (MediumBytes() in size_classes.h).
//
//   slot      0      1      2     ...
//   run      run    run     -            what the slot holds
//   start     p      q      ?            where it starts
//   bytes   100 Ki  36 Ki   0            its size; 0 is an empty slot
//
// Only the owner puts runs in. It and the maintenance thread take them out, and
// exclude each other as in Dekker's algorithm, with the expensive half of its
// fence on the side that is seldom used:
//
//   owner                          maintenance thread
//     is_busy_ = true                is_closed_ = true
//     (compiler fence)               membarrier(): a fence in every thread
//     is_closed_ ? give up           is_busy_ ? give up
//     ... use the slots ...          ... use the slots ...
//     is_busy_ = false               is_closed_ = false
//
// Whatever the order, one of the two sees the other: a store of the owner that
// is not visible before the fence in its thread is made after it, and then so
// is its load of is_closed_.
//
// Thread-safety: Take(), Put(), PopAbove() and PopIdle() on the owner; StealIdle()
//   on one other thread at a time. PopIdle() and StealIdle() under the lock of the
//   thread cache.
// Ordering: is_busy_ and is_closed_ are released when they turn false and
//   acquired by the other side, so that the slots pass from one to the other.
// Invariant: the sum of bytes_[i] is cached_bytes_; bytes_[i] == 0 exactly when
//   runs_[i] == nullptr. Every run in a slot is in state kCached.
// Size: three cache lines.
// Source: asymmetric fences of Dice, Huang and Yang 2001, by membarrier(2).
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
  // More is worth the maintenance thread's attention, which Put() leaves to its
  // caller.
  static constexpr size_t kFewBytes = size_t{1} << 20;

  constexpr RunCache() = default;
  RunCache(const RunCache&) = delete;
  RunCache& operator=(const RunCache&) = delete;

  // A run of exactly `bytes` > 0 bytes, in state kInUse, which may hold
  // anything, and where it starts; nullptr if there is none.
  ABSL_ATTRIBUTE_ALWAYS_INLINE Run* Take(size_t bytes, void** start) {
    for (size_t i = 0; i < kSlots; ++i) {
      if (bytes_[i].load(std::memory_order_relaxed) != bytes) continue;
      if (ABSL_PREDICT_FALSE(!Enter())) return nullptr;
      // Again: it may have been stolen before we entered.
      Run* run = runs_[i].load(std::memory_order_relaxed);
      *start = starts_[i];
      if (ABSL_PREDICT_TRUE(run != nullptr)) Remove(i);
      Leave();
      if (ABSL_PREDICT_FALSE(run == nullptr)) return nullptr;
      run->zeroed = false;
      run->state.store(Run::kInUse, std::memory_order_relaxed);
      return run;
    }
    return nullptr;
  }

  // Keeps `run`, which is in use and starts at `start`, where there is room for it
  // and little is kept; else false, and then Put().
  //
  // Two threads that free it at once may both get here. The arena finds that
  // out when it is given the run a second time.
  ABSL_ATTRIBUTE_ALWAYS_INLINE bool TryPut(Run* run, void* start) {
    const size_t bytes = run->bytes();
    if (cached_bytes() + bytes > kFewBytes) return false;
    for (size_t i = 0; i < kSlots; ++i) {
      if (bytes_[i].load(std::memory_order_relaxed) != 0) continue;
      if (ABSL_PREDICT_FALSE(!Enter())) return false;
      run->state.store(Run::kCached, std::memory_order_relaxed);
      Fill(i, run, start, bytes);
      Leave();
      return true;
    }
    return false;
  }

  // Keeps `run`, whose state the caller has made kCached. Returns the run that
  // must go to its arena for that, if any: one put in earlier, or `run` itself.
  Run* Put(Run* run) {
    const size_t bytes = run->bytes();
    if (bytes > kMostRunBytes) return run;
    if (ABSL_PREDICT_FALSE(!Enter())) return run;
    Run* evicted = nullptr;
    size_t i = 0;
    while (i < kSlots && bytes_[i].load(std::memory_order_relaxed) != 0) ++i;
    if (i == kSlots) {
      i = next_evicted_++ % kSlots;
      evicted = runs_[i].load(std::memory_order_relaxed);
      Remove(i);
    }
    Fill(i, run, run->start, bytes);
    Leave();
    return evicted;
  }

  // Any run while more than `keep_bytes` are kept, the oldest as far as is
  // known; else nullptr. Its state stays kCached.
  Run* PopAbove(size_t keep_bytes) {
    if (ABSL_PREDICT_TRUE(cached_bytes() <= keep_bytes)) return nullptr;
    if (!Enter()) return nullptr;
    Run* run = nullptr;
    for (size_t tries = 0; tries < kSlots && run == nullptr; ++tries) {
      const size_t i = next_evicted_++ % kSlots;
      run = runs_[i].load(std::memory_order_relaxed);
      if (run != nullptr) Remove(i);
    }
    Leave();
    return run;
  }

  // A run, as PopAbove() chooses it, if none was put in since the last call.
  Run* PopIdle() {
    const uint32_t puts = puts_.load(std::memory_order_relaxed);
    if (std::exchange(puts_at_pop_, puts) != puts) return nullptr;
    return PopAbove(0);
  }

  // Takes the runs out if the owner has put none in since the last call, or if it
  // `is_urgent`, and calls visit(run) for each. Returns whether any is left.
  template <typename Visit>
  bool StealIdle(bool is_urgent, Visit visit) {
    if (cached_bytes() == 0) return false;
    const uint32_t puts = puts_.load(std::memory_order_relaxed);
    if (std::exchange(puts_at_steal_, puts) != puts && !is_urgent) return true;
    is_closed_.store(true, std::memory_order_relaxed);
    // Acquire pairs with the release in Leave().
    if (!FenceAllThreads() || is_busy_.load(std::memory_order_acquire)) {
      is_closed_.store(false, std::memory_order_release);
      return true;
    }
    Run* stolen[kSlots];
    size_t count = 0;
    for (size_t i = 0; i < kSlots; ++i) {
      Run* run = runs_[i].load(std::memory_order_relaxed);
      if (run == nullptr) continue;
      Remove(i);
      stolen[count++] = run;
    }
    // Release pairs with the acquire in Enter().
    is_closed_.store(false, std::memory_order_release);
    for (size_t i = 0; i < count; ++i) visit(stolen[i]);
    return false;
  }

  // Makes every thread of the process pass a fence; false where the system
  // cannot.
  static bool FenceAllThreads();

  // Any thread may ask.
  size_t cached_bytes() const {
    return cached_bytes_.load(std::memory_order_relaxed);
  }

  // In the child of a fork, for the cache of a thread that is gone: whatever
  // it was in the midst of.
  void ReopenAfterFork() {
    size_t sum = 0;
    for (size_t i = 0; i < kSlots; ++i) {
      const Run* run = runs_[i].load(std::memory_order_relaxed);
      const size_t bytes = run == nullptr ? 0 : run->bytes();
      bytes_[i].store(static_cast<uint32_t>(bytes), std::memory_order_relaxed);
      starts_[i] = run == nullptr ? nullptr : run->start;
      sum += bytes;
    }
    cached_bytes_.store(sum, std::memory_order_relaxed);
    is_busy_.store(false, std::memory_order_relaxed);
    is_closed_.store(false, std::memory_order_relaxed);
  }

 private:
  // False while the maintenance thread is at the slots.
  bool Enter() {
    is_busy_.store(true, std::memory_order_relaxed);
    // The processor's fence is the membarrier() of the other side.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    // Acquire pairs with the release in StealIdle().
    if (ABSL_PREDICT_TRUE(!is_closed_.load(std::memory_order_acquire))) {
      return true;
    }
    Leave();
    return false;
  }
  void Leave() { is_busy_.store(false, std::memory_order_release); }

  void Fill(size_t i, Run* run, void* start, size_t bytes) {
    starts_[i] = start;
    runs_[i].store(run, std::memory_order_relaxed);
    bytes_[i].store(static_cast<uint32_t>(bytes), std::memory_order_relaxed);
    cached_bytes_.store(cached_bytes() + bytes, std::memory_order_relaxed);
    puts_.store(puts_.load(std::memory_order_relaxed) + 1,
                std::memory_order_relaxed);
  }

  void Remove(size_t i) {
    const size_t bytes = bytes_[i].load(std::memory_order_relaxed);
    cached_bytes_.store(cached_bytes() - bytes, std::memory_order_relaxed);
    bytes_[i].store(0, std::memory_order_relaxed);
    runs_[i].store(nullptr, std::memory_order_relaxed);
  }

  std::atomic<uint32_t> bytes_[kSlots] = {};
  std::atomic<size_t> cached_bytes_{0};
  uint32_t next_evicted_ = 0;  // The owner's.
  std::atomic<bool> is_busy_{false};
  std::atomic<bool> is_closed_{false};
  // How often the owner put a run in, and what that was at the last PopIdle() and
  // at the last StealIdle().
  std::atomic<uint32_t> puts_{0};
  uint32_t puts_at_pop_ = 0;
  uint32_t puts_at_steal_ = 0;
  // Where they start, as the owner was told. In a loop of allocation and free each
  // turn would wait for the look-up of the record from the address, and for the
  // address in the record, if what is given out came from there.
  void* starts_[kSlots] = {};
  std::atomic<Run*> runs_[kSlots] = {};
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_RUN_CACHE_H_
