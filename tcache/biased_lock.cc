#include "tcache/biased_lock.h"

#include <cstdint>

#include "arena/clock.h"
#include "tcache/process_fence.h"

namespace quarry {

void BiasedLock::GiveBias() {
  // Relaxed: a hint. Whoever takes it away for the moment gives it back.
  if (has_bias_.load(std::memory_order_relaxed) || !CanFenceAllThreads()) {
    return;
  }
  LockHolder hold(lock_);
  is_owned_ = true;
  RestoreBias();
}

void BiasedLock::AcquireUnbiased() { lock_.Acquire(); }
bool BiasedLock::TryAcquireUnbiased() { return lock_.TryAcquire(); }
void BiasedLock::ReleaseUnbiased() { lock_.Release(); }

void BiasedLock::Acquire() {
  lock_.Acquire();
  // Relaxed: who writes it holds lock_.
  if (!has_bias_.load(std::memory_order_relaxed)) return;
  Revoke();
  FenceAllThreads();
  AwaitOwner();
}

bool BiasedLock::TryAcquire() {
  // Relaxed: it spares a system call where the owner is seen without one.
  if (is_inside_.load(std::memory_order_relaxed) || !lock_.TryAcquire()) {
    return false;
  }
  // As above.
  if (!has_bias_.load(std::memory_order_relaxed)) return true;
  Revoke();
  FenceAllThreads();
  // Acquire pairs with the release in Leave().
  if (!is_inside_.load(std::memory_order_acquire)) return true;
  Release();
  return false;
}

void BiasedLock::AwaitOwner() const {
  // The owner does not wake anyone. It may wait for the system, or for a
  // processor, so its time must not be taken by asking; and a sleep is long
  // beside most of its stays.
  constexpr uint32_t kPauseNs = 20'000;
  // Acquire pairs with the release in Leave().
  while (is_inside_.load(std::memory_order_acquire)) SleepNs(kPauseNs);
}

}  // namespace quarry
