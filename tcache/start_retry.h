// When to try again after the maintenance thread could not be started, as where a process
// has as many threads as it may for a moment: a second later, and twice as long after each
// failure.
//
// Thread-safety: any thread. Two that fail at once count once or twice.
#ifndef QUARRY_TCACHE_START_RETRY_H_
#define QUARRY_TCACHE_START_RETRY_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "arena/clock.h"

namespace quarry {

class StartRetry {
 public:
  static constexpr uint32_t kFirstPauseMs = 1000;
  static constexpr uint32_t kMostPauseMs = 64 * kFirstPauseMs;

  void NoteFailure(uint32_t now_ms) {
    const uint32_t before_ms = last_.load(std::memory_order_relaxed).pause_ms;
    const uint32_t pause_ms =
        before_ms == 0 ? kFirstPauseMs : std::min(2 * before_ms, kMostPauseMs);
    last_.store({now_ms, pause_ms}, std::memory_order_relaxed);
  }

  // False where nothing has failed.
  bool IsDue(uint32_t now_ms) const {
    const Failure last = last_.load(std::memory_order_relaxed);
    return last.pause_ms != 0 && AgeMs(last.at_ms, now_ms) >= last.pause_ms;
  }

 private:
  // In one word, so that no thread sees the time of one with the pause of another.
  struct alignas(8) Failure {
    uint32_t at_ms;
    uint32_t pause_ms;
  };
  // Relaxed: nothing else is published by it.
  std::atomic<Failure> last_{};
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_START_RETRY_H_
