#include "arena/limits.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "arena/cgroup.h"
#include "arena/errno_saver.h"
#include "arena/settings.h"

namespace quarry {
namespace {

// By how much use passes the limit again, or falls below, before it counts.
size_t Hysteresis(size_t soft_bytes) { return soft_bytes / 16; }

}  // namespace

constinit MemoryLimits memory_limits;

size_t MemoryLimits::SoftLimit() const {
  const size_t set_bytes =
      settings.soft_limit_bytes.load(std::memory_order_relaxed);
  if (set_bytes != 0) return set_bytes;
  const size_t system_bytes =
      system_limit_bytes_.load(std::memory_order_relaxed);
  return system_bytes == kNotLookedUp ? 0 : system_bytes;
}

size_t MemoryLimits::WatchedBytes() const {
  const size_t soft_bytes = SoftLimit();
  if (soft_bytes != 0) {
    return std::max(soft_bytes,
                    next_relief_bytes_.load(std::memory_order_relaxed));
  }
  const bool looked_up =
      system_limit_bytes_.load(std::memory_order_relaxed) != kNotLookedUp;
  return looked_up ? SIZE_MAX : kLookUpBytes;
}

bool MemoryLimits::Charge(size_t bytes) {
  const size_t hard_bytes =
      settings.hard_limit_bytes.load(std::memory_order_relaxed);
  size_t before = mapped_bytes_.load(std::memory_order_relaxed);
  do {
    if (hard_bytes != 0 &&
        (before > hard_bytes || bytes > hard_bytes - before)) {
      return false;
    }
  } while (!mapped_bytes_.compare_exchange_weak(before, before + bytes,
                                                std::memory_order_relaxed));
  if (before + bytes > WatchedBytes()) {
    pressure_is_due_.store(true, std::memory_order_relaxed);
  }
  return true;
}

void MemoryLimits::Refund(size_t bytes) {
  const size_t now =
      mapped_bytes_.fetch_sub(bytes, std::memory_order_relaxed) - bytes;
  if (next_relief_bytes_.load(std::memory_order_relaxed) == 0) return;
  const size_t soft_bytes = SoftLimit();
  if (now <= soft_bytes - Hysteresis(soft_bytes)) {
    next_relief_bytes_.store(0, std::memory_order_relaxed);
  }
}

void MemoryLimits::SetLimits(size_t soft_bytes, size_t hard_bytes) {
  settings.soft_limit_bytes.store(soft_bytes, std::memory_order_relaxed);
  settings.hard_limit_bytes.store(hard_bytes, std::memory_order_relaxed);
  next_relief_bytes_.store(0, std::memory_order_relaxed);
  if (mapped_bytes() > WatchedBytes()) {
    pressure_is_due_.store(true, std::memory_order_relaxed);
  }
}

void MemoryLimits::SetCallback(Callback callback, void* context) {
  // Odd already where a fork came within another call, whose thread the child has not.
  const size_t writing = callback_version_.load(std::memory_order_relaxed) | 1;
  callback_version_.store(writing, std::memory_order_relaxed);
  // Release keeps the odd version before both, and both before the even one,
  // for who acquires them in Tell().
  callback_.store(callback, std::memory_order_release);
  callback_context_.store(context, std::memory_order_release);
  callback_version_.store(writing + 1, std::memory_order_release);
}

bool MemoryLimits::AboveSoftLimit() const {
  const size_t soft_bytes = SoftLimit();
  return soft_bytes != 0 && mapped_bytes() > soft_bytes;
}

bool MemoryLimits::HasRoomFor(size_t bytes) const {
  const size_t hard_bytes = settings.hard_limit_bytes.load(std::memory_order_relaxed);
  const size_t soft_bytes = SoftLimit();
  const size_t then_bytes = mapped_bytes() + bytes;
  return (soft_bytes == 0 || then_bytes <= soft_bytes) &&
         (hard_bytes == 0 || then_bytes <= hard_bytes);
}

bool MemoryLimits::BeginRelief() {
  const pid_t self = getpid();
  pid_t reliever = reliever_.load(std::memory_order_relaxed);
  // Acquire pairs with the release at the end of Relieve().
  return reliever != self &&
         reliever_.compare_exchange_strong(reliever, self,
                                           std::memory_order_acquire,
                                           std::memory_order_relaxed);
}

void MemoryLimits::Relieve(void (*release)()) {
  // First, so that growth beside the rest of this is not missed.
  pressure_is_due_.store(false, std::memory_order_relaxed);
  if (!BeginRelief()) return;
  if (system_limit_bytes_.load(std::memory_order_relaxed) == kNotLookedUp) {
    system_limit_bytes_.store(CgroupMemoryLimit(system_root_),
                              std::memory_order_relaxed);
  }
  if (mapped_bytes() > WatchedBytes()) {
    const size_t soft_bytes = SoftLimit();
    release();
    const size_t now = mapped_bytes();
    const size_t hysteresis = Hysteresis(soft_bytes);
    const bool is_far_below = now <= soft_bytes - hysteresis;
    // Before the callback, which may itself allocate.
    next_relief_bytes_.store(
        is_far_below ? 0 : std::max(now, soft_bytes) + hysteresis,
        std::memory_order_relaxed);
    if (now > soft_bytes) Tell(now, soft_bytes);
  }
  reliever_.store(0, std::memory_order_release);
  // Who came above the limit meanwhile has not waited.
  if (mapped_bytes() > WatchedBytes()) {
    pressure_is_due_.store(true, std::memory_order_relaxed);
  }
}

void MemoryLimits::Tell(size_t mapped_bytes, size_t soft_bytes) {
  const size_t version = callback_version_.load(std::memory_order_acquire);
  // Acquire pairs with the releases in SetCallback(): who sees one of the new
  // values sees the new version below.
  const Callback callback = callback_.load(std::memory_order_acquire);
  void* const context = callback_context_.load(std::memory_order_acquire);
  // Being replaced just now: not waited for, as a fork may have left it so.
  if (version % 2 != 0 ||
      callback_version_.load(std::memory_order_relaxed) != version) {
    return;
  }
  if (callback == nullptr) return;
  ErrnoSaver saver;
  callback(context, mapped_bytes, soft_bytes);
}

}  // namespace quarry
