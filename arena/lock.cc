#include "arena/lock.h"

#include <array>

#include "arena/futex.h"
#include "arena/report.h"

namespace quarry {

constinit thread_local bool has_every_lock = false;

namespace {

// About a microsecond: longer than most holders need, shorter than the two
// switches that a sleep costs.
constexpr int kSpins = 40;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

}  // namespace

void Lock::AcquireContended() {
  if (has_every_lock) return;
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t state = state_.load(std::memory_order_relaxed);
    if (state == kFree && Seize()) return;
    // Others sleep: the queue is long, so join it.
    if (state == kContended) break;
    Pause();
  }
  // From here on the word says kContended, also once this thread has the lock:
  // it cannot know whether it was the last to wait. The cost is one wake too
  // many. Pairs with the release in Yield().
  while (state_.exchange(kContended, std::memory_order_acquire) != kFree) {
    FutexWait(state_, kContended);
  }
}

void Lock::WakeOne() { FutexWakeOne(state_); }

void Lock::AssertHeld() const {
  QUARRY_DCHECK(state_.load(std::memory_order_relaxed) != kFree);
}

#ifndef NDEBUG
namespace {

// How many locks of each rank this thread holds.
ABSL_ATTRIBUTE_INITIAL_EXEC constinit thread_local std::array<
    uint8_t, static_cast<size_t>(LockRank::kMetadata) + 1>
    held{};

}  // namespace

void Lock::CheckOrder() const {
  if (has_every_lock) return;
  for (size_t rank = static_cast<size_t>(rank_); rank < held.size(); ++rank) {
    QUARRY_CHECK(held[rank] == 0 && "lock order");
  }
}

void Lock::NoteAcquired() const {
  if (has_every_lock) return;
  ++held[static_cast<size_t>(rank_)];
}

void Lock::NoteReleased() const {
  QUARRY_CHECK(held[static_cast<size_t>(rank_)] != 0 && "released by another thread");
  --held[static_cast<size_t>(rank_)];
}
#endif  // NDEBUG

}  // namespace quarry
