// All thread caches, open or closed.
//
// A cache is never unmapped: a thread that is about to push onto its pending
// stack may hold its address for as long as it likes. A closed cache serves the
// next thread that starts.
//
// Thread-safety: all functions on any thread.
#ifndef QUARRY_TCACHE_CACHE_REGISTRY_H_
#define QUARRY_TCACHE_CACHE_REGISTRY_H_

#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "arena/lock.h"
#include "tcache/thread_cache.h"

namespace quarry {

class CacheRegistry {
 public:
  constexpr CacheRegistry() : lock_(LockRank::kRegistry) {}

  // An open cache for a new owner; nullptr when there is no memory, or a
  // million threads have one.
  [[nodiscard]] ThreadCache* Take() ABSL_LOCKS_EXCLUDED(lock_);

  // Closes `cache` and keeps it for another owner.
  void Give(ThreadCache* cache) ABSL_LOCKS_EXCLUDED(lock_);

  // How many caches are open.
  size_t OpenCaches() ABSL_LOCKS_EXCLUDED(lock_);

  // Calls visit(cache) for every cache, open or not, under the lock.
  template <typename Visit>
  void ForEach(Visit visit) ABSL_LOCKS_EXCLUDED(lock_) {
    LockHolder hold(lock_);
    ForEachLocked(visit);
  }

  template <typename Visit>
  void ForEachLocked(Visit visit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    for (ThreadCache* cache = all_; cache != nullptr;
         cache = cache->next_in_registry) {
      visit(cache);
    }
  }

  // The same without the lock, for visits that take long: caches are never
  // unmapped, and what follows one in the registry never changes. Those that are
  // made meanwhile are left out.
  template <typename Visit>
  void ForEachUnlocked(Visit visit) ABSL_LOCKS_EXCLUDED(lock_) {
    ThreadCache* cache;
    {
      LockHolder hold(lock_);
      cache = all_;
    }
    for (; cache != nullptr; cache = cache->next_in_registry) visit(cache);
  }

  Lock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }

 private:
  Lock lock_;
  ThreadCache* all_ ABSL_GUARDED_BY(lock_) = nullptr;
  ThreadCache* closed_ ABSL_GUARDED_BY(lock_) = nullptr;
  size_t made_ ABSL_GUARDED_BY(lock_) = 0;
  size_t open_ ABSL_GUARDED_BY(lock_) = 0;
};

extern constinit CacheRegistry cache_registry;

}  // namespace quarry

#endif  // QUARRY_TCACHE_CACHE_REGISTRY_H_
