#include "arena/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

#include "arena/errno_saver.h"

namespace quarry {
namespace {

long Futex(std::atomic<uint32_t>& word, int operation, uint32_t value,
           const timespec* most) {
  static_assert(sizeof(word) == 4, "the kernel's futexes are 32 bits");
  return syscall(SYS_futex, &word, operation, value, most, nullptr, 0);
}

}  // namespace

void FutexWait(std::atomic<uint32_t>& word, uint32_t value) {
  ErrnoSaver saver;
  Futex(word, FUTEX_WAIT_PRIVATE, value, nullptr);
}

bool FutexWaitFor(std::atomic<uint32_t>& word, uint32_t value,
                  uint64_t most_ms) {
  ErrnoSaver saver;
  const timespec most = {static_cast<time_t>(most_ms / 1000),
                         static_cast<long>(most_ms % 1000 * 1000000)};
  return Futex(word, FUTEX_WAIT_PRIVATE, value, &most) == 0 ||
         errno != ETIMEDOUT;
}

void FutexWakeOne(std::atomic<uint32_t>& word) {
  ErrnoSaver saver;
  Futex(word, FUTEX_WAKE_PRIVATE, 1, nullptr);
}

}  // namespace quarry
