// All thread caches, open or closed.
//
// A cache is never unmapped: a thread that is about to push onto its pending
// stack may hold its address for as long as it likes. A closed cache serves the
// next thread that starts.
//
// A thread that exits leaves its cache parked: open, with all that it has, for the
// next thread. Programs that start a thread for each task would otherwise give
// back and take again the same slabs each time. To all others a parked cache is
// that of an idle thread. The maintenance thread closes it after a while.
//
// Of several the next thread gets the one that was parked last, unless before its first
// allocation it frees a block of a parked cache: it has taken over what the thread before
// it worked on, and so gets that thread's cache, and the rest of its frees are local.
//
// In the child of a fork the caches of its parent's other threads are bereft: open as well,
// and closed after as long, but for no thread.
//
// Thread-safety: all functions on any thread.
#ifndef QUARRY_TCACHE_CACHE_REGISTRY_H_
#define QUARRY_TCACHE_CACHE_REGISTRY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "arena/lock.h"
#include "arena/untold_bytes.h"
#include "tcache/thread_cache.h"

namespace quarry {

class CacheRegistry {
 public:
  constexpr CacheRegistry() : lock_(LockRank::kRegistry) {}

  // An open cache for a new owner; nullptr when there is no memory, or a
  // million threads have one. The first is for a thread, and may have been parked;
  // what the second returns is empty.
  [[nodiscard]] ThreadCache* TakeForThread() ABSL_LOCKS_EXCLUDED(lock_);
  [[nodiscard]] ThreadCache* Take() ABSL_LOCKS_EXCLUDED(lock_);

  // `cache` for a thread that has found blocks of it, if it is parked and near; else
  // nullptr.
  [[nodiscard]] ThreadCache* TakeParked(ThreadCache* cache)
      ABSL_LOCKS_EXCLUDED(lock_);

  // A tag for a cache, that no other has or had; kNoTag after a million of them.
  [[nodiscard]] Tag NewTag() ABSL_LOCKS_EXCLUDED(lock_);

  // Closes `cache` and keeps it for another owner.
  void Give(ThreadCache* cache) ABSL_LOCKS_EXCLUDED(lock_);

  // Parks `cache`, if it holds little and settings allow; else closes it as Give() does.
  // The owner thread calls this last.
  void Park(ThreadCache* cache) ABSL_LOCKS_EXCLUDED(lock_);

  // Closes caches that were parked or bereft some calls ago, or all of them, but `most` at
  // most. Returns whether any is left.
  bool CloseParked(bool all, size_t most = SIZE_MAX) ABSL_LOCKS_EXCLUDED(lock_);

  // In the child of a fork: all open caches but these two and parked ones are bereft until
  // CloseParked(). No thread gets one, since what its own thread was about to count may be
  // wrong.
  void BereaveAllBut(const ThreadCache* mine, const ThreadCache* stray)
      ABSL_LOCKS_EXCLUDED(lock_);

  // Calls visit(cache) for every cache, open or not, under the lock.
  template <typename Visit>
  void ForEach(Visit visit) ABSL_LOCKS_EXCLUDED(lock_) {
    LockHolder hold(lock_);
    ForEachLocked(visit);
  }

  template <typename Visit>
  void ForEachLocked(Visit visit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    for (ThreadCache* cache = first(); cache != nullptr;
         cache = cache->next_in_registry) {
      visit(cache);
    }
  }

  // The same without the lock, for visits that take long or come under the lock of a cache:
  // caches are never unmapped, and what follows one in the registry never changes. Those that are
  // made meanwhile are left out.
  template <typename Visit>
  void ForEachUnlocked(Visit visit) {
    (void)VisitWhile(nullptr, [&](ThreadCache* cache) {
      visit(cache);
      return true;
    });
  }

  // The same from `first` on, or from the beginning if that is nullptr, as long as visit()
  // returns true. Returns the cache that comes then, nullptr after the last.
  template <typename Visit>
  ThreadCache* VisitWhile(ThreadCache* first, Visit visit) {
    ThreadCache* cache = first != nullptr ? first : this->first();
    bool goes_on = true;
    for (; cache != nullptr && goes_on; cache = cache->next_in_registry) {
      goes_on = visit(cache);
    }
    return cache;
  }

  // Whether there is or was more than one thread with a cache.
  bool HasSeveral() const {
    const ThreadCache* const cache = first();
    return cache != nullptr && cache->next_in_registry != nullptr;
  }

  Lock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }

 private:
  Tag MakeTag() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Acquire pairs with the release in Take(): who finds a cache finds it constructed.
  ThreadCache* first() const { return first_.load(std::memory_order_acquire); }

  // The one parked last of those that are near and for which is_wanted(cache);
  // nullptr if there is none, or threads may have none as it is.
  template <typename IsWanted>
  ThreadCache* TryTakeParked(IsWanted is_wanted) ABSL_LOCKS_EXCLUDED(lock_);

  // Takes those that are due out of the list that *link leads to, `most` at most, counts the
  // look at the others, and returns them linked before `due`.
  ThreadCache* TakeDue(ThreadCache** link, bool all, size_t* most, ThreadCache* due)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Takes the parked or bereft cache that *link leads to out of the list.
  ThreadCache* Unpark(ThreadCache** link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Four are the decay time.
  static constexpr uint8_t kLooksWhileParked = 4;

  Lock lock_;
  // Of all caches, the one that was made last. Written under the lock.
  std::atomic<ThreadCache*> first_{nullptr};
  ThreadCache* closed_ ABSL_GUARDED_BY(lock_) = nullptr;
  ThreadCache* parked_ ABSL_GUARDED_BY(lock_) = nullptr;
  ThreadCache* bereft_ ABSL_GUARDED_BY(lock_) = nullptr;
  size_t parked_count_ ABSL_GUARDED_BY(lock_) = 0;
  // Held by caches that were parked.
  UntoldBytes untold_parked_ ABSL_GUARDED_BY(lock_);
  Tag tags_made_ ABSL_GUARDED_BY(lock_) = 0;
};

extern constinit CacheRegistry cache_registry;

}  // namespace quarry

#endif  // QUARRY_TCACHE_CACHE_REGISTRY_H_
