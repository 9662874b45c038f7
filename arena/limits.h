#ifndef QUARRY_ARENA_LIMITS_H_
#define QUARRY_ARENA_LIMITS_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>

namespace quarry {

// How much may be mapped, and what happens when that is too much.
//
// What counts is every byte of address space that a page source with these
// limits holds: segments, huge blocks in use and kept for reuse, the
// allocator's own records and their guards. It counts whether resident or not,
// and so is an upper bound of what is resident.
//
//   hard   What would pass it is not mapped, as if the system had refused.
//   soft   Passing it raises PressureIsDue(). The next slow path that holds no
//          lock calls Relieve(): free memory goes back, and if that was not
//          enough, the program is told by its callback. It is told again after
//          a sixteenth of the limit more, or after use fell a sixteenth below
//          it: not each time when use goes to and fro about the limit.
//
// A limit is in settings.soft_limit_bytes and settings.hard_limit_bytes. Where
// no soft limit is set, that of the control group is taken, which is looked up
// when kLookUpBytes are mapped: a small program never opens a file.
//
// Thread-safety: any thread; SetCallback() by one thread at a time. Charge(),
//   Refund() and the questions may be called with any lock held, Relieve() with
//   none.
// Ordering: relaxed, but for the callback and its context, see SetCallback().
// Errors: see Charge(). errno is preserved.
// Cost: PressureIsDue() is one load.
class MemoryLimits {
 public:
  using Callback = void (*)(void* context, size_t mapped_bytes,
                            size_t soft_bytes);

  static constexpr size_t kLookUpBytes = size_t{32} << 20;

  // `system_root` stands before /proc and /sys.
  constexpr explicit MemoryLimits(const char* system_root = "")
      : system_root_(system_root) {}
  MemoryLimits(const MemoryLimits&) = delete;
  MemoryLimits& operator=(const MemoryLimits&) = delete;

  // Counts `bytes` that are about to be mapped. On false, when that would pass
  // the hard limit, nothing was counted.
  [[nodiscard]] bool Charge(size_t bytes);

  // Counts bytes that were not mapped after all, or are not any more.
  void Refund(size_t bytes);

  // 0 means no limit; no soft limit means that of the system. What is mapped
  // already stays, and may be above either.
  void SetLimits(size_t soft_bytes, size_t hard_bytes);

  // Whom Relieve() tells; nullptr for nobody. The callback may allocate and
  // free. A call that is under way goes on.
  void SetCallback(Callback callback, void* context);

  // Whether Relieve() has something to do.
  bool PressureIsDue() const {
    return pressure_is_due_.load(std::memory_order_relaxed);
  }

  bool AboveSoftLimit() const;

  // Whether so much more would be below both limits, as far as there are any.
  bool HasRoomFor(size_t bytes) const;

  // The soft limit in force: what is set, or the control group's once that was looked up;
  // 0 for none.
  size_t SoftLimit() const;

  // Calls `release`, which is to give back what is free, and then the callback
  // if still more than the soft limit is mapped. Does nothing within itself or
  // beside another thread that does it.
  void Relieve(void (*release)());

  size_t mapped_bytes() const {
    return mapped_bytes_.load(std::memory_order_relaxed);
  }

 private:
  static constexpr size_t kNotLookedUp = ~size_t{0};

  // The mapped bytes that pressure begins above.
  size_t WatchedBytes() const;
  bool BeginRelief();
  void Tell(size_t mapped_bytes, size_t soft_bytes);

  const char* const system_root_;
  std::atomic<size_t> mapped_bytes_{0};
  std::atomic<bool> pressure_is_due_{false};
  // Since Relieve(): what must be mapped for the next; 0 for the limit itself.
  std::atomic<size_t> next_relief_bytes_{0};
  std::atomic<size_t> system_limit_bytes_{kNotLookedUp};
  // The process in which a thread is in Relieve(), or 0. A number and no flag,
  // since a fork within Relieve() copies it without the thread.
  std::atomic<pid_t> reliever_{0};

  // Odd while SetCallback() writes.
  std::atomic<size_t> callback_version_{0};
  std::atomic<Callback> callback_{nullptr};
  std::atomic<void*> callback_context_{nullptr};
};

// The limits of the process, which count what OsPages() maps.
extern constinit MemoryLimits memory_limits;

inline void SetMemoryLimits(size_t soft_bytes, size_t hard_bytes) {
  memory_limits.SetLimits(soft_bytes, hard_bytes);
}

inline void SetPressureCallback(MemoryLimits::Callback callback,
                                void* context) {
  memory_limits.SetCallback(callback, context);
}

inline bool PressureIsDue() { return memory_limits.PressureIsDue(); }

inline bool AboveSoftLimit() { return memory_limits.AboveSoftLimit(); }

}  // namespace quarry

#endif  // QUARRY_ARENA_LIMITS_H_
