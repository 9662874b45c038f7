#ifndef QUARRY_ARENA_LOCK_H_
#define QUARRY_ARENA_LOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"

namespace quarry {

// The order of all locks of the process. A thread may acquire a lock only
// while every lock it holds has a smaller rank; one that it only tries may have
// any rank, since it does not wait for it. The order is defined here.
enum class LockRank : uint32_t {
  kRegistry = 1,  // All thread caches.
  kArenas,        // The making of arenas.
  kCache,         // One thread cache's shared side.
  kOrphans,       // Slabs whose thread exited.
  kHugePurge,     // The huge blocks that are being unmapped.
  kHuge,          // The list of huge blocks.
  kPurge,         // One arena's purge, while it gives pages back.
  kArena,         // One arena: its bins, runs and segments.
  kPageMap,       // New leaves of the page map.
  kMetadata,      // The allocator's own memory.
};

// Whether the calling thread has every lock of the process, for fork(). Until it
// gives them up it acquires and releases none: fork handlers of other libraries
// run meanwhile, and may allocate.
ABSL_CONST_INIT ABSL_ATTRIBUTE_INITIAL_EXEC extern thread_local bool
    has_every_lock;

// A mutual-exclusion lock on one futex word.
//
//   state_:   kFree --Acquire--> kHeld --a second thread waits--> kContended
//               ^                  |                                  |
//               +-----Release------+-----Release, waking one----------+
//
// Thread-safety: any thread; not recursive; released by the thread that
//   acquired it. For a thread that has every lock Acquire() and Release() do nothing,
//   and TryAcquire() fails.
// Ordering: Acquire() acquires and Release() releases, so whatever was done
//   under the lock happens before the next holder's work.
// Errors: debug builds abort when the order of LockRank is broken.
// Cost: uncontended, one compare-and-exchange and one exchange, no system
//   call. A waiter spins for about a microsecond, then sleeps.
// Size: 8 bytes, in every build.
// Source: Drepper, "Futexes Are Tricky" (2011), the third mutex.
class ABSL_LOCKABLE Lock {
 public:
  // Where nothing checks the order the rank is left zero: tables of the process
  // that have locks are then zero memory, resident as far as it is used, and not
  // pages of the program's file.
  constexpr explicit Lock(LockRank rank)
      : state_(kFree), rank_(kChecksOrder ? rank : LockRank{}) {}
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  void Acquire() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    CheckOrder();
    if (ABSL_PREDICT_FALSE(!Seize())) AcquireContended();
    NoteAcquired();
  }

  // Never waits. May break the order, since what never waits never deadlocks.
  [[nodiscard]] bool TryAcquire() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    if (!Seize()) return false;
    NoteAcquired();
    return true;
  }

  void Release() ABSL_UNLOCK_FUNCTION() {
    if (ABSL_PREDICT_FALSE(has_every_lock)) return;
    NoteReleased();
    Yield();
  }

  // For the holder: whether another thread sleeps for the lock, or did.
  bool IsContended() const {
    // Relaxed: a hint, and at its next step it looks again.
    return state_.load(std::memory_order_relaxed) == kContended;
  }

  // fork() takes every lock of the process. Locks of one rank are then held
  // together, so these three leave the order unchecked; their caller goes by
  // rank, and within a rank by index. It sets has_every_lock in between.
  void AcquireForFork() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    if (ABSL_PREDICT_FALSE(!Seize())) AcquireContended();
  }
  void ReleaseAfterFork() ABSL_UNLOCK_FUNCTION() { Yield(); }

  // In the child, in place of ReleaseAfterFork(): whoever waited is gone.
  void ResetAfterFork() ABSL_UNLOCK_FUNCTION() {
    state_.store(kFree, std::memory_order_relaxed);  // One thread exists.
  }

  // What Acquire() and Release() check and note of the order, for who has what a
  // lock of this rank guards by other means. Nothing where nothing checks it.
#ifdef NDEBUG
  static constexpr bool kChecksOrder = false;
  void CheckOrder() const {}
  void NoteAcquired() const {}
  void NoteReleased() const {}
#else
  static constexpr bool kChecksOrder = true;
  void CheckOrder() const;
  void NoteAcquired() const;
  void NoteReleased() const;
#endif

  // Tells clang, and in debug builds checks, that some thread holds the lock.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK();

 private:
  static constexpr uint32_t kFree = 0;
  static constexpr uint32_t kHeld = 1;
  static constexpr uint32_t kContended = 2;  // Held, and perhaps waited for.

  bool Seize() {
    uint32_t expected = kFree;
    // Pairs with the release in Yield().
    return state_.compare_exchange_strong(
        expected, kHeld, std::memory_order_acquire, std::memory_order_relaxed);
  }

  void Yield() {
    // Pairs with the acquires in Seize() and AcquireContended().
    if (ABSL_PREDICT_FALSE(state_.exchange(kFree, std::memory_order_release) ==
                           kContended)) {
      WakeOne();
    }
  }

  void AcquireContended();
  void WakeOne();

  std::atomic<uint32_t> state_;
  [[maybe_unused]] const LockRank rank_;
};

static_assert(sizeof(Lock) == 8, "a lock shares its line with what it guards");

// Holds a lock for the length of a scope.
//
// Thread-safety: lives on the stack of one thread.
class ABSL_SCOPED_LOCKABLE LockHolder {
 public:
  explicit LockHolder(Lock& lock) ABSL_EXCLUSIVE_LOCK_FUNCTION(lock)
      : lock_(lock) {
    lock_.Acquire();
  }
  ~LockHolder() ABSL_UNLOCK_FUNCTION() { lock_.Release(); }
  LockHolder(const LockHolder&) = delete;
  LockHolder& operator=(const LockHolder&) = delete;

 private:
  Lock& lock_;
};

}  // namespace quarry

#endif  // QUARRY_ARENA_LOCK_H_
