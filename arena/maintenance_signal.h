// How the rooms tell the maintenance thread that there is work for it.
//
//   kNoThread --NoteWork--> kWanted --the thread starts--> kAwake
//                                                          |    ^
//                                          nothing is left |    | NoteWork
//                                                          v    |
//                                                          kAsleep
//
// A room that made memory dirty, or took frees for a thread that may be idle,
// calls NoteWork(). That is one load while the thread is awake. A process that
// never has work never starts the thread; one that is idle is not woken.
//
// Thread-safety: any thread. NoteWork() may be called with any lock held; it
//   never allocates and never waits.
#ifndef QUARRY_ARENA_MAINTENANCE_SIGNAL_H_
#define QUARRY_ARENA_MAINTENANCE_SIGNAL_H_

#include <atomic>
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
    kOff,       // By option, or since it could not be started.
  };

  void NoteWork() {
    // Relaxed: the thread looks for work only after it took the lock under
    // which the work was made.
    const uint32_t state = state_.load(std::memory_order_relaxed);
    if (ABSL_PREDICT_FALSE(state == kNoThread || state == kAsleep)) {
      NoteWorkSlow(state);
    }
  }

  bool IsWanted() const {
    return state_.load(std::memory_order_relaxed) == kWanted;
  }

  std::atomic<uint32_t>& state() { return state_; }

 private:
  void NoteWorkSlow(uint32_t state);

  std::atomic<uint32_t> state_{kNoThread};
};

extern constinit MaintenanceSignal maintenance_signal;

}  // namespace quarry

#endif  // QUARRY_ARENA_MAINTENANCE_SIGNAL_H_
