#include "arena/processors.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cstdint>

#include "arena/errno_saver.h"

namespace quarry {
namespace {

// One bit for each processor, as the system has them; no bytes where there are more.
constexpr size_t kMostProcessors = 1024;
struct ProcessorSet {
  uint64_t words[kMostProcessors / 64] = {};
  size_t bytes = 0;
};

// By the system's own call, here and below: libc's functions for it lie on pages that few
// programs touch.
ProcessorSet ProcessorsOfThread() {
  ProcessorSet set;
  const long bytes =
      syscall(SYS_sched_getaffinity, 0, sizeof(set.words), set.words);
  if (bytes > 0) set.bytes = static_cast<size_t>(bytes);
  return set;
}

// What the thread that asked first found. Two that ask at once may each store theirs, word
// by word: any mixture will do, so all but `count` is relaxed.
struct {
  std::atomic<uint64_t> words[kMostProcessors / 64];
  std::atomic<size_t> bytes;
  std::atomic<size_t> count;  // 0 as long as nobody asked.
} constinit known = {};

}  // namespace

void RememberProcessors() {
  if (known.count.load(std::memory_order_relaxed) != 0) return;
  ErrnoSaver saver;
  const ProcessorSet set = ProcessorsOfThread();
  size_t count = 0;
  for (size_t i = 0; i < set.bytes / sizeof(set.words[0]); ++i) {
    known.words[i].store(set.words[i], std::memory_order_relaxed);
    count += static_cast<size_t>(std::popcount(set.words[i]));
  }
  known.bytes.store(set.bytes, std::memory_order_relaxed);
  // Release pairs with the acquire in RunOnAllProcessors().
  known.count.store(count != 0 ? count : SIZE_MAX, std::memory_order_release);
}

size_t Processors() {
  RememberProcessors();
  return known.count.load(std::memory_order_relaxed);
}

void RunOnAllProcessors() {
  if (known.count.load(std::memory_order_acquire) == 0) return;
  const size_t bytes = known.bytes.load(std::memory_order_relaxed);
  if (bytes == 0) return;
  ErrnoSaver saver;
  ProcessorSet set;
  for (size_t i = 0; i < bytes / sizeof(set.words[0]); ++i) {
    set.words[i] = known.words[i].load(std::memory_order_relaxed);
  }
  (void)syscall(SYS_sched_setaffinity, 0, bytes, set.words);
}

}  // namespace quarry
