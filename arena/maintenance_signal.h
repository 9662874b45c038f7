// How the rooms tell the maintenance thread that there is work for it.
//
//   kNoThread --NoteWork--> kWanted --TryStart--> kAwake <---------+
//                              |                     |             | NoteWork,
//                              |          FallAsleep |             | StayAwake
//                              +--TurnOff--> kOff    +--> kAsleep -+
//                              ^              |              |
//                              +----TurnOn----+              |
//                                                            |
//                      kNoThread <-no work for half a second-+
//
// Who has it awake by TryStart() and cannot start it calls TurnOff(), too.
//
// A room that made memory dirty, or took frees for a thread that may be idle,
// calls NoteWork(). That is one load while the thread is awake. A process that
// never has work never starts the thread; one that is idle is not woken.
//
// A mebibyte of free memory is work. Nobody counts what all threads and arenas have
// together, for they would all write to the count: each has its share of the
// mebibyte, and notes work when it frees something and then has more. No share is less
// than what a thread keeps at hand of one small size anyway, so of thousands of threads what
// no one notes is as much as that.
//
// No work is forgotten. The thread calls FallAsleep(), then looks for work once
// more, and waits only if it finds none. A room makes its work, then calls
// NoteWork(). Where the work is made under a lock that the look takes, either
// the look comes later and finds it, or the room's call comes later and finds
// kAsleep. Where it is made without a lock, the same holds if it is made and
// looked for by sequentially consistent operations, as the state is stored and
// loaded here: in their one order the store of kAsleep or the making of the
// work is first. And it holds where work is made by plain stores, as by the owner
// of a cache under its biased lock, if the look begins with a fence in all threads.
//
// Thread-safety: any thread. NoteWork() may be called with any lock held; it
//   never allocates and never waits.
#ifndef QUARRY_ARENA_MAINTENANCE_SIGNAL_H_
#define QUARRY_ARENA_MAINTENANCE_SIGNAL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/optimization.h"

namespace quarry {

class MaintenanceSignal {
 public:
  enum State : uint32_t {
    kNoThread,  // Not started, and nothing to do.
    kWanted,    // To be started by the next thread that holds no lock.
    kAwake,
    kAsleep,
    kOff,  // By option, or for a while since it could not be started.
  };

  // --- For the rooms. ---

  void NoteWork() {
    // Sequentially consistent, which costs a load no more on x86: see above.
    const uint32_t state = state_.load(std::memory_order_seq_cst);
    if (ABSL_PREDICT_FALSE(state == kNoThread || state == kAsleep)) {
      NoteWorkSlow(state);
    }
  }

  // NoteWork() if `bytes` are more than the share of one thread, which keeps them for
  // its next requests, or of one arena, in which they are free and dirty.
  void NoteKept(size_t bytes) {
    if (bytes > ThreadShare()) NoteWork();
  }
  // Whether who keeps so many has to call NoteKept(), or to see to it that the thread is
  // started.
  bool IsWantedFor(size_t kept_bytes) const {
    // As NoteWork().
    const uint32_t state = state_.load(std::memory_order_seq_cst);
    if (state == kAwake) return false;
    return state == kWanted || (kept_bytes > ThreadShare() && state != kOff);
  }
  void NoteDirty(size_t bytes) {
    if (bytes > arena_share_.load(std::memory_order_relaxed)) NoteWork();
  }
  size_t ThreadShare() const {
    return thread_share_.load(std::memory_order_relaxed);
  }

  // So many threads and arenas have a share.
  void SetPlaces(size_t threads, size_t arenas);

  static constexpr size_t kNotedBytes = size_t{1} << 20;
  // No share is less. A thread keeps so much at hand of one small size as it is.
  static constexpr size_t kLeastShareBytes = size_t{64} << 10;

  bool IsWanted() const { return state() == kWanted; }
  bool IsOff() const { return state() == kOff; }
  State state() const {
    return static_cast<State>(state_.load(std::memory_order_relaxed));
  }

  // --- For who starts the thread. ---

  // True for one caller: it starts the thread, or else calls TurnOff().
  [[nodiscard]] bool TryStart() { return Change(kWanted, kAwake); }
  void TurnOff() { state_.store(kOff, std::memory_order_relaxed); }
  // After TurnOff(), to try again. Without effect if it is on.
  void TurnOn() { (void)Change(kOff, kWanted); }

  // In the child of a fork, which has one thread: if the thread had work, its
  // place is to be taken.
  void ResetAfterFork();

  // --- For the thread. ---

  void FallAsleep() { state_.store(kAsleep, std::memory_order_seq_cst); }
  void StayAwake() { (void)Change(kAsleep, kAwake); }

  // Waits until there is work, at most `most_ms` milliseconds. From then on the
  // thread is awake. Returns whether there is work.
  bool WaitForWork(uint64_t most_ms) { return Wait(most_ms, kAwake); }

  // The same; but when the time has passed, there is no thread any more.
  bool WaitForWorkOrEnd(uint64_t most_ms) { return Wait(most_ms, kNoThread); }

 private:
  void NoteWorkSlow(uint32_t state);
  bool Wait(uint64_t most_ms, State then);

  bool Change(uint32_t from, uint32_t to) {
    return state_.compare_exchange_strong(from, to, std::memory_order_acq_rel,
                                          std::memory_order_relaxed);
  }

  std::atomic<uint32_t> state_{kNoThread};
  // Relaxed: it is no matter when a change is seen.
  std::atomic<size_t> thread_share_{kNotedBytes};
  std::atomic<size_t> arena_share_{kNotedBytes};
};

extern constinit MaintenanceSignal maintenance_signal;

}  // namespace quarry

#endif  // QUARRY_ARENA_MAINTENANCE_SIGNAL_H_
