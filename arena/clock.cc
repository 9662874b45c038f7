#include "arena/clock.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "arena/errno_saver.h"

namespace quarry {

void SleepNs(uint32_t nanoseconds) {
  constexpr long kSecond = 1'000'000'000;
  ErrnoSaver saver;
  timespec end;
  clock_gettime(CLOCK_MONOTONIC, &end);
  const long ns = end.tv_nsec + static_cast<long>(nanoseconds);
  end.tv_sec += ns / kSecond;
  end.tv_nsec = ns % kSecond;
  while (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &end,
                 nullptr) != 0 &&
         errno == EINTR) {
  }
}

}  // namespace quarry
