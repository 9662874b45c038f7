#include "arena/lock.h"

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

// Bit r is set while this thread holds a lock of rank r.
ABSL_ATTRIBUTE_INITIAL_EXEC constinit thread_local uint32_t held_ranks = 0;

}  // namespace

void Lock::CheckOrder() const {
  if (has_every_lock) return;
  const uint32_t this_and_later = ~uint32_t{0} << static_cast<uint32_t>(rank_);
  QUARRY_CHECK((held_ranks & this_and_later) == 0 && "lock order");
}

void Lock::NoteAcquired() const {
  if (has_every_lock) return;
  const uint32_t bit = 1u << static_cast<uint32_t>(rank_);
  QUARRY_CHECK((held_ranks & bit) == 0 && "two locks of one rank");
  held_ranks |= bit;
}

void Lock::NoteReleased() const {
  const uint32_t bit = 1u << static_cast<uint32_t>(rank_);
  QUARRY_CHECK((held_ranks & bit) != 0 && "released by another thread");
  held_ranks &= ~bit;
}
#endif  // NDEBUG

}  // namespace quarry
