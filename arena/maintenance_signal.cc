#include "arena/maintenance_signal.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

namespace quarry {

constinit MaintenanceSignal maintenance_signal;

void MaintenanceSignal::NoteWorkSlow(uint32_t state) {
  // Again, if the thread went from asleep to none meanwhile.
  while (state == kNoThread || state == kAsleep) {
    const uint32_t wanted = state == kNoThread ? kWanted : kAwake;
    if (!Change(state, wanted)) {
      state = state_.load(std::memory_order_seq_cst);
      continue;
    }
    if (wanted == kWanted) return;
    const int saved_errno = errno;
    syscall(SYS_futex, &state_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    errno = saved_errno;
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
  // Relative: nothing but the end of the time and a change of state ends the
  // wait, since the thread takes no signals; being traced may, and then the
  // time begins anew.
  const timespec most = {static_cast<time_t>(most_ms / 1000),
                         static_cast<long>(most_ms % 1000 * 1000000)};
  while (state() == kAsleep) {
    if (syscall(SYS_futex, &state_, FUTEX_WAIT_PRIVATE, kAsleep,
                most_ms != 0 ? &most : nullptr, nullptr, 0) != 0 &&
        errno == ETIMEDOUT) {
      return !Change(kAsleep, then);
    }
  }
  return true;
}

}  // namespace quarry
