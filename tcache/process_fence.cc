#include "tcache/process_fence.h"

#include <linux/membarrier.h>
#include <sys/single_threaded.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "arena/clock.h"
#include "arena/errno_saver.h"

namespace quarry {
namespace {

bool Membarrier(int command) {
  ErrnoSaver saver;
  return syscall(SYS_membarrier, command, 0, 0) == 0;
}

}  // namespace

bool CanFenceAllThreads() {
  enum : int { kUnknown, kYes, kNo };
  static constinit std::atomic<int> answer{kUnknown};
  // Relaxed: whoever asks the system gets the same answer.
  int known = answer.load(std::memory_order_relaxed);
  if (known == kUnknown) {
    known = Membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) ? kYes : kNo;
    answer.store(known, std::memory_order_relaxed);
  }
  return known == kYes;
}

void FenceAllThreads() {
  // Nor is a filter of system calls met in a process that has shut itself in.
  if (__libc_single_threaded) return;
  // The child of a fork may have to register anew, which does no harm.
  if (Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) ||
      (Membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) &&
       Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED))) {
    return;
  }
  // A filter of system calls that was put in place since then. A processor keeps
  // a store to itself for less than a microsecond, and when it turns to another
  // thread not at all.
  SleepNs(1'000'000);
}

}  // namespace quarry
