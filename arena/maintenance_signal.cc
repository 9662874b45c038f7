#include "arena/maintenance_signal.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace quarry {

constinit MaintenanceSignal maintenance_signal;

void MaintenanceSignal::NoteWorkSlow(uint32_t state) {
  const uint32_t wanted = state == kNoThread ? kWanted : kAwake;
  // Release pairs with the acquire of the thread that wakes.
  if (!state_.compare_exchange_strong(state, wanted, std::memory_order_release,
                                      std::memory_order_relaxed)) {
    return;
  }
  if (wanted != kAwake) return;
  const int saved_errno = errno;
  syscall(SYS_futex, &state_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  errno = saved_errno;
}

}  // namespace quarry
