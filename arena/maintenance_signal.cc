#include "arena/maintenance_signal.h"

#include <algorithm>

#include "arena/futex.h"

namespace quarry {

constinit MaintenanceSignal maintenance_signal;

void MaintenanceSignal::SetPlaces(size_t threads, size_t arenas) {
  const auto share = [](size_t places) {
    return std::max(kNotedBytes / std::max<size_t>(places, 1), kLeastShareBytes);
  };
  thread_share_.store(share(threads), std::memory_order_relaxed);
  arena_share_.store(share(arenas), std::memory_order_relaxed);
}

void MaintenanceSignal::NoteWorkSlow(uint32_t state) {
  // Again, if the thread went from asleep to none meanwhile.
  while (state == kNoThread || state == kAsleep) {
    const uint32_t wanted = state == kNoThread ? kWanted : kAwake;
    if (!Change(state, wanted)) {
      state = state_.load(std::memory_order_seq_cst);
      continue;
    }
    if (wanted == kAwake) FutexWakeOne(state_);
    return;
  }
}

void MaintenanceSignal::ResetAfterFork() {
  switch (state()) {
    case kNoThread:
    case kAsleep:
      state_.store(kNoThread, std::memory_order_relaxed);
      return;
    case kWanted:
    case kAwake:
      state_.store(kWanted, std::memory_order_relaxed);
      return;
    case kOff:
      return;
  }
}

bool MaintenanceSignal::Wait(uint64_t most_ms, State then) {
  // Nothing but the end of the time and a change of state ends the wait, since
  // the thread takes no signals; being traced may, and then the time begins
  // anew.
  while (state() == kAsleep) {
    if (!FutexWaitFor(state_, kAsleep, most_ms)) return !Change(kAsleep, then);
  }
  return true;
}

}  // namespace quarry
