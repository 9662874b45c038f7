#include "arena/processors.h"

#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <iterator>

#include "arena/errno_saver.h"

namespace quarry {
namespace {

// One bit for each processor, as the system has them; no bytes where there are more.
constexpr size_t kMostProcessors = 1024;
struct ProcessorSet {
  uint64_t words[kMostProcessors / 64] = {};
  size_t bytes = 0;

  size_t Count() const {
    size_t count = 0;
    for (const uint64_t word : words) count += static_cast<size_t>(std::popcount(word));
    return count;
  }
  bool operator==(const ProcessorSet&) const = default;
};

// Of the thread of this id; 0 is the calling one. By the system's own call, here and below:
// libc's functions for it lie on pages that few programs touch.
ProcessorSet ProcessorsOf(pid_t thread) {
  ProcessorSet set;
  const long bytes =
      syscall(SYS_sched_getaffinity, thread, sizeof(set.words), set.words);
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

ProcessorSet Known() {
  ProcessorSet set;
  if (known.count.load(std::memory_order_acquire) == 0) return set;
  for (size_t i = 0; i < std::size(set.words); ++i) {
    set.words[i] = known.words[i].load(std::memory_order_relaxed);
  }
  set.bytes = known.bytes.load(std::memory_order_relaxed);
  return set;
}

}  // namespace

void RememberProcessors() {
  if (known.count.load(std::memory_order_relaxed) != 0) return;
  ErrnoSaver saver;
  const ProcessorSet set = ProcessorsOf(0);
  for (size_t i = 0; i < std::size(set.words); ++i) {
    known.words[i].store(set.words[i], std::memory_order_relaxed);
  }
  known.bytes.store(set.bytes, std::memory_order_relaxed);
  const size_t count = set.Count();
  // Release pairs with the acquire in Known().
  known.count.store(count != 0 ? count : SIZE_MAX, std::memory_order_release);
}

size_t Processors() {
  RememberProcessors();
  return known.count.load(std::memory_order_relaxed);
}

void RunOnAllProcessors() {
  ErrnoSaver saver;
  ProcessorSet wanted = ProcessorsOf(getpid());
  if (wanted.Count() <= 1) wanted = Known();
  // Not if it may as it is: a filter of system calls may kill for it.
  if (wanted.bytes == 0 || wanted == ProcessorsOf(0)) return;
  (void)syscall(SYS_sched_setaffinity, 0, wanted.bytes, wanted.words);
}

}  // namespace quarry
