// The time by which free memory ages, and waiting.
//
// Thread-safety: any thread. errno is preserved.
// Cost: NowMs() a few nanoseconds and no system call where the kernel offers its
//   clock to user space.
#ifndef QUARRY_ARENA_CLOCK_H_
#define QUARRY_ARENA_CLOCK_H_

#include <time.h>

#include <cstdint>

namespace quarry {

// Milliseconds since some moment, true to a few of them. Wraps around after 49
// days, so two times are compared by AgeMs() or IsBefore().
inline uint32_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<uint32_t>(static_cast<uint64_t>(now.tv_sec) * 1000 +
                               static_cast<uint64_t>(now.tv_nsec) / 1000000);
}

// How long before `now_ms` something happened, if that was at most 49 days.
constexpr uint32_t AgeMs(uint32_t then_ms, uint32_t now_ms) {
  return now_ms - then_ms;
}

// Whether the first of two times is earlier, if they are at most 24 days apart: half of
// the clock's range about a time is its past, the other half its future.
constexpr bool IsBefore(uint32_t then_ms, uint32_t time_ms) {
  return then_ms != time_ms && AgeMs(then_ms, time_ms) <= ~uint32_t{0} / 2;
}

// Returns when so many nanoseconds have passed, whatever signals come meanwhile.
// Unlike the C library's calls it is no place where a thread is cancelled: locks
// may be held.
void SleepNs(uint32_t nanoseconds);

}  // namespace quarry

#endif  // QUARRY_ARENA_CLOCK_H_
