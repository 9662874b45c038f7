// A lock that its owner takes without a locked instruction.
//
// A locked instruction waits until all stores before it are in the cache. The
// owner of a thread cache comes to its lock between stores to blocks that are
// not, thousands of times before any other thread comes. So it has a way of its
// own, for which the others pay:
//
//   owner                           another thread
//     is_inside_ = true               lock_.Acquire()
//     (compiler fence)                has_bias_ = false
//     has_bias_ ?                     FenceAllThreads()
//       yes: ... work ...             wait until !is_inside_
//            is_inside_ = false       ... work ...
//       no:  is_inside_ = false       has_bias_ = true
//            lock_.Acquire()          lock_.Release()
//            ... work ...
//            lock_.Release()
//
// Whatever the order, one of the two sees the other: a store of the owner that
// is not visible before the fence in its thread is made after it, and then so
// is its load of has_bias_.
//
// Until it is given a bias it is a Lock, which any thread takes as one; so it
// stays where the system has no such fence.
//
// Thread-safety: the functions of the owner on one thread, or on several of which
//   each ends before the next begins; all others on any thread. Not recursive: a
//   signal handler that comes in where its thread is inside, as no malloc may,
//   finds no lock there.
// Ordering: as a Lock. is_inside_ is released when it turns false and acquired by
//   who waits for that, has_bias_ when it turns true and by the owner.
// Cost: the owner's ways in and out, two loads and two stores. For all others a
//   system call that interrupts every processor with a thread of the process.
// Size: 12 bytes.
// Source: biased locking, Dice, Huang and Yang 2001, Kawachiya 2002.
#ifndef QUARRY_TCACHE_BIASED_LOCK_H_
#define QUARRY_TCACHE_BIASED_LOCK_H_

#include <atomic>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "arena/lock.h"

namespace quarry {

class ABSL_LOCKABLE BiasedLock {
 public:
  constexpr explicit BiasedLock(LockRank rank) : lock_(rank) {}
  BiasedLock(const BiasedLock&) = delete;
  BiasedLock& operator=(const BiasedLock&) = delete;

  // --- The owner. ---

  void AcquireAsOwner() ABSL_EXCLUSIVE_LOCK_FUNCTION()
      ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (ABSL_PREDICT_FALSE(!TryAcquireByBias())) AcquireUnbiased();
  }

  // Never waits.
  [[nodiscard]] bool TryAcquireAsOwner() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true)
      ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return ABSL_PREDICT_TRUE(TryAcquireByBias()) || TryAcquireUnbiased();
  }

  void ReleaseAsOwner() ABSL_UNLOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (ABSL_PREDICT_TRUE(is_inside_.load(std::memory_order_relaxed))) {
      ReleaseByBias();
    } else {
      ReleaseUnbiased();
    }
  }

  // The short way and no other: false also where there is no bias.
  [[nodiscard]] bool TryAcquireByBias() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true)
      ABSL_NO_THREAD_SAFETY_ANALYSIS {
    is_inside_.store(true, std::memory_order_relaxed);
    // The processor's fence is the FenceAllThreads() of the other side.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    // Acquire pairs with the release in RestoreBias().
    if (ABSL_PREDICT_TRUE(has_bias_.load(std::memory_order_acquire))) {
      lock_.CheckOrder();
      lock_.NoteAcquired();
      return true;
    }
    Leave();
    return false;
  }
  void ReleaseByBias() ABSL_UNLOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock_.NoteReleased();
    Leave();
  }

  // From now on the functions of the owner take the short way, where there is one.
  void GiveBias();

  // Acquires, and leaves no bias behind: from now on there is no owner. For the
  // owner, or who comes after it; then Release().
  void AcquireAndEndBias() ABSL_EXCLUSIVE_LOCK_FUNCTION()
      ABSL_NO_THREAD_SAFETY_ANALYSIS {
    // Nobody is inside, so nobody need be fenced.
    lock_.Acquire();
    is_owned_ = false;
  }

  // --- Any thread, and the owner, too. ---

  void Acquire() ABSL_EXCLUSIVE_LOCK_FUNCTION();

  // Never waits.
  [[nodiscard]] bool TryAcquire() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true);

  void Release() ABSL_UNLOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (ABSL_PREDICT_FALSE(has_every_lock)) return;
    RestoreBias();
    lock_.Release();
  }

  // For a holder that is not the owner: whether another thread sleeps for the lock,
  // or did.
  bool IsContended() const { return lock_.IsContended(); }

  // As those of Lock. If AcquireForFork() says that there was a bias, the lock is
  // held after a FenceAllThreads(), one for all such locks, and AwaitOwner().
  [[nodiscard]] bool AcquireForFork() ABSL_EXCLUSIVE_LOCK_FUNCTION()
      ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock_.AcquireForFork();
    Revoke();
    return is_owned_;
  }
  void AwaitOwner() const;
  void ReleaseAfterFork() ABSL_UNLOCK_FUNCTION()
      ABSL_NO_THREAD_SAFETY_ANALYSIS {
    RestoreBias();
    lock_.ReleaseAfterFork();
  }
  void ResetAfterFork() ABSL_UNLOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    // An owner that is gone may have been about to find that it has no bias.
    is_inside_.store(false, std::memory_order_relaxed);
    RestoreBias();
    lock_.ResetAfterFork();
  }

 private:
  // Out of line.
  void AcquireUnbiased() ABSL_EXCLUSIVE_LOCK_FUNCTION();
  bool TryAcquireUnbiased() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true);
  void ReleaseUnbiased() ABSL_UNLOCK_FUNCTION();

  // Pairs with the acquires of AwaitOwner() and TryAcquire().
  void Leave() { is_inside_.store(false, std::memory_order_release); }

  // Relaxed: FenceAllThreads() follows.
  void Revoke() { has_bias_.store(false, std::memory_order_relaxed); }
  // Pairs with the acquire in TryAcquireByBias().
  void RestoreBias() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    has_bias_.store(is_owned_, std::memory_order_release);
  }

  Lock lock_;
  // Written by the owner alone.
  std::atomic<bool> is_inside_{false};
  // Written under lock_: is_owned_, but false while another thread holds this lock.
  std::atomic<bool> has_bias_{false};
  bool is_owned_ ABSL_GUARDED_BY(lock_) = false;
};

static_assert(sizeof(BiasedLock) == 12);

// Each holds such a lock for the length of a scope: as its owner, or as any thread.
//
// Thread-safety: lives on the stack of one thread.
class ABSL_SCOPED_LOCKABLE OwnerLockHolder {
 public:
  explicit OwnerLockHolder(BiasedLock& lock) ABSL_EXCLUSIVE_LOCK_FUNCTION(lock)
      : lock_(lock) {
    lock_.AcquireAsOwner();
  }
  ~OwnerLockHolder() ABSL_UNLOCK_FUNCTION() { lock_.ReleaseAsOwner(); }
  OwnerLockHolder(const OwnerLockHolder&) = delete;
  OwnerLockHolder& operator=(const OwnerLockHolder&) = delete;

 private:
  BiasedLock& lock_;
};

class ABSL_SCOPED_LOCKABLE BiasedLockHolder {
 public:
  explicit BiasedLockHolder(BiasedLock& lock) ABSL_EXCLUSIVE_LOCK_FUNCTION(lock)
      : lock_(lock) {
    lock_.Acquire();
  }
  ~BiasedLockHolder() ABSL_UNLOCK_FUNCTION() { lock_.Release(); }
  BiasedLockHolder(const BiasedLockHolder&) = delete;
  BiasedLockHolder& operator=(const BiasedLockHolder&) = delete;

 private:
  BiasedLock& lock_;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_BIASED_LOCK_H_
