// What the workloads share: deterministic random numbers, clocks, tables that
// the allocator under test does not serve, and the resident set.
//
// Nothing in here calls malloc. A workload prints lines `NAME VALUE UNIT`, of
// which less is better; see Print().

#ifndef TOOLS_BENCHMARKS_SUPPORT_H_
#define TOOLS_BENCHMARKS_SUPPORT_H_

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace bench {

constexpr size_t kPageBytes = 4096;
constexpr double kMib = 1024.0 * 1024.0;

// Zero-filled array in a mapping of its own, resident from the start so that it
// is part of any baseline, and never unmapped.
template <typename T>
class Table {
 public:
  explicit Table(size_t entries) : entries_(entries) {
    void* mapping = mmap(nullptr, entries * sizeof(T), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (mapping == MAP_FAILED) {
      std::perror("benchmark: mmap");
      std::exit(1);
    }
    data_ = static_cast<T*>(mapping);
  }

  T& operator[](size_t i) const { return data_[i]; }
  T* begin() const { return data_; }
  T* end() const { return data_ + entries_; }
  size_t size() const { return entries_; }

 private:
  T* data_;
  size_t entries_;
};

// The SplitMix64 generator: the same sequence on every machine.
// Source: Steele, Lea, Flood 2014.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // Uniform in [low, high].
  uint32_t Between(uint32_t low, uint32_t high) {
    const uint64_t top = Next() >> 32;
    return low + static_cast<uint32_t>((top * (uint64_t{high} - low + 1)) >> 32);
  }

  // In [low, high], each octave as likely as any other: many small, few large.
  uint32_t PowerLaw(uint32_t low, uint32_t high) {
    const double exponent = static_cast<double>(Next() >> 11) * 0x1p-53;
    return static_cast<uint32_t>(low *
                                 std::pow((high + 1.0) / low, exponent));
  }

  template <typename T>
  void Shuffle(T* values, size_t count) {
    for (size_t i = count; i > 1; --i) {
      const uint32_t other = Between(0, static_cast<uint32_t>(i - 1));
      std::swap(values[i - 1], values[other]);
    }
  }

 private:
  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  uint64_t state_;
};

inline double NowNs(clockid_t clock = CLOCK_MONOTONIC) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e9 +
         static_cast<double>(now.tv_nsec);
}

// Waits without a call of the allocator.
inline void SleepMs(int ms) {
  const timespec time = {ms / 1000, ms % 1000 * 1'000'000L};
  nanosleep(&time, nullptr);
}

// Spins a little, then leaves the core to whomever is waited for.
template <typename Condition>
void WaitUntil(Condition condition) {
  for (int spins = 0; !condition(); ++spins) {
    if (spins >= 100) sched_yield();
  }
}

// The compiler may not assume that it knows what `block` points to, else it
// would remove a malloc and its free.
inline void Escape(void* block) { asm volatile("" : : "r"(block) : "memory"); }

// A block of `bytes` whose first and last byte are written.
inline char* NewBlock(size_t bytes) {
  char* block = static_cast<char*>(std::malloc(bytes));
  block[0] = 1;
  block[bytes - 1] = 2;
  Escape(block);
  return block;
}

// Writes one byte of each `stride` of the block, and its last one.
inline void Touch(char* block, size_t bytes, size_t stride = kPageBytes) {
  for (size_t i = 0; i < bytes; i += stride) block[i] = 1;
  block[bytes - 1] = 2;
}

// Bytes of this process that are in memory now.
inline double ResidentBytes() {
  char text[128] = {};
  const int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (file < 0 || read(file, text, sizeof(text) - 1) <= 0) std::abort();
  close(file);
  return static_cast<double>(
             std::strtoull(std::strchr(text, ' '), nullptr, 10)) *
         kPageBytes;
}

// The most that ResidentBytes() has been since the program was started.
inline double PeakResidentBytes() {
  char text[4096] = {};
  const int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (file < 0 || read(file, text, sizeof(text) - 1) <= 0) std::abort();
  close(file);
  const char* line = std::strstr(text, "VmHWM:");
  if (line == nullptr) std::abort();
  return static_cast<double>(std::strtoull(line + 6, nullptr, 10)) * 1024;
}

// One figure for the runner. UNIT is ns, MiB, or x for a ratio.
inline void Print(const char* name, double value, const char* unit) {
  std::printf("%s %.4g %s\n", name, value, unit);
  std::fflush(stdout);
}

// The positional argument `index`, from 1; `otherwise` when there are fewer.
inline size_t Argument(int argc, char** argv, int index, size_t otherwise) {
  if (index >= argc) return otherwise;
  char* end;
  const unsigned long long value = std::strtoull(argv[index], &end, 10);
  if (*end != '\0' || end == argv[index] || value == 0) {
    std::fprintf(stderr, "%s: not a positive number: %s\n", argv[0],
                 argv[index]);
    std::exit(2);
  }
  return value;
}

[[noreturn]] inline void FailUsage(const char* program, const char* usage) {
  std::fprintf(stderr, "usage: %s %s\n", program, usage);
  std::exit(2);
}

}  // namespace bench

#endif  // TOOLS_BENCHMARKS_SUPPORT_H_
