#include "tcache/run_cache.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arena/errno_saver.h"

namespace quarry {
namespace {

bool Membarrier(int command) {
  ErrnoSaver saver;
  return syscall(SYS_membarrier, command, 0, 0) == 0;
}

}  // namespace

bool RunCache::FenceAllThreads() {
  // A process registers once, before its first; again does no harm, and that
  // is also right in the child of a fork.
  return Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) ||
         (Membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) &&
          Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED));
}

}  // namespace quarry
