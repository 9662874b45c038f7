#include "tcache/thread_life.h"

#include <pthread.h>

#include <atomic>

#include "arena/huge.h"
#include "arena/lock.h"
#include "arena/maintenance_signal.h"
#include "arena/process_arenas.h"
#include "arena/settings.h"
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/process_fence.h"

namespace quarry {
namespace {

constinit std::atomic<ThreadCache*> stray_cache{nullptr};

pthread_key_t exit_key;
constinit bool has_exit_key = false;
constinit pthread_once_t handlers_once = PTHREAD_ONCE_INIT;

void OnThreadExit(void*) { EndThread(); }

// Every lock there is, in the order of the ranks, but for the first two: those of
// the registry and of the making of arenas, under which no other thread makes a
// lock.
template <typename Visit>
void ForEachCacheLock(Visit visit) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  cache_registry.ForEachLocked(
      [&](ThreadCache* cache) { visit(cache->lock()); });
}
template <typename Visit>
void ForEachLaterLock(Visit visit) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  for (size_t i = 0; i < ArenasMade(); ++i) visit(OrphansOf(i).lock());
  visit(huge_blocks.purge_lock());
  visit(huge_blocks.lock());
  for (size_t i = 0; i < ArenasMade(); ++i) visit(ArenaAt(i).purge_lock());
  for (size_t i = 0; i < ArenasMade(); ++i) visit(ArenaAt(i).lock());
  visit(PageMapLock());
  visit(metadata_pool.lock());
}

void BeforeFork() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  // A handler that allocates would make this thread's cache, and perhaps an arena
  // with it, whose locks would be nobody's.
  if (ArenasMade() != 0 && CurrentCache() == nullptr) (void)StrayCache();
  cache_registry.lock().AcquireForFork();
  ArenasLock().AcquireForFork();
  bool any_was_biased = false;
  ForEachCacheLock([&](BiasedLock& lock) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    any_was_biased |= lock.AcquireForFork();
  });
  // Before the later locks, for which the owner of a cache may wait inside.
  if (any_was_biased) {
    FenceAllThreads();
    ForEachCacheLock([](BiasedLock& lock) { lock.AwaitOwner(); });
  }
  ForEachLaterLock([](Lock& lock) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock.AcquireForFork();
  });
  has_every_lock = true;
}

void AfterForkInParent() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  has_every_lock = false;
  const auto release = [](auto& lock) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock.ReleaseAfterFork();
  };
  ForEachCacheLock(release);
  ForEachLaterLock(release);
  ArenasLock().ReleaseAfterFork();
  cache_registry.lock().ReleaseAfterFork();
}

void AfterForkInChild() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  has_every_lock = false;
  const auto reset = [](auto& lock) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock.ResetAfterFork();
  };
  ForEachCacheLock(reset);
  ForEachLaterLock(reset);
  ArenasLock().ResetAfterFork();
  cache_registry.lock().ResetAfterFork();
  maintenance_signal.ResetAfterFork();
  ThreadCache* const mine = thread_state.cache;
  bool inherits = false;
  cache_registry.ForEach([&](ThreadCache* cache) {
    if (!cache->is_open) return;
    if (cache == mine) {
      inherits = cache->DrainAllAfterFork();
    } else {
      cache->BereaveAfterFork();
    }
  });
  for (size_t i = 0; i < ArenasMade(); ++i) OrphansOf(i).DrainAll();
  // The maintenance thread is not told, or each child would start one.
  cache_registry.BereaveAllBut(mine, stray_cache.load(std::memory_order_relaxed));
  if (settings.parked_caches.load(std::memory_order_relaxed) == 0) {
    (void)cache_registry.CloseParked(/*all=*/true);
  }
  if (inherits) {
    const Tag tag = cache_registry.NewTag();
    if (tag != kNoTag) mine->InheritSlabs(tag);
  }
}

void RegisterHandlersOnce() {
  // Without a key caches are not given up at thread exit, and without the
  // handlers fork is unsafe: both calls fail only when a limit of the C library
  // is reached.
  has_exit_key = pthread_key_create(&exit_key, OnThreadExit) == 0;
  (void)pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);
}

// Returns `cache`, which may be nullptr, as the calling thread's.
ThreadCache* BeginThread(ThreadCache* cache) {
  if (cache == nullptr) return nullptr;
  const bool takes_fast_path =
      settings.perturb_byte.load(std::memory_order_relaxed) == 0;
  thread_state.cache = cache;
  thread_state.SetTag(takes_fast_path ? cache->tag() : 0);
  cache->lock().GiveBias();
  // The C library may allocate in these calls, and finds the cache in place.
  RegisterHandlers();
  if (has_exit_key) (void)pthread_setspecific(exit_key, cache);
  return cache;
}

}  // namespace

void RegisterHandlers() {
  pthread_once(&handlers_once, RegisterHandlersOnce);
}

ThreadCache* MakeCurrentCache() {
  if (thread_state.exited) return nullptr;
  return BeginThread(cache_registry.TakeForThread());
}

ThreadCache* TakeCacheOver(ThreadCache* cache) {
  return BeginThread(cache_registry.TakeParked(cache));
}

ThreadCache* StrayCache() {
  ThreadCache* cache = stray_cache.load(std::memory_order_acquire);
  if (cache != nullptr) return cache;
  ThreadCache* made = cache_registry.Take();
  if (made == nullptr) return nullptr;
  // Release pairs with the acquire above and below: who finds the cache finds
  // it open.
  if (stray_cache.compare_exchange_strong(cache, made,
                                          std::memory_order_acq_rel)) {
    // It is never given back, and no thread's.
    LeaveArena(*made->arena());
    return made;
  }
  cache_registry.Give(made);
  return cache;
}

bool IsStrayCache(const ThreadCache* cache) {
  return cache == stray_cache.load(std::memory_order_relaxed);
}

void EndThread() {
  ThreadCache* cache = thread_state.cache;
  if (cache == &no_cache) return;
  // First: nothing below may come back to this cache.
  thread_state = {&no_cache, &no_cache, 0, true, 0, kNobodysTag};
  cache_registry.Park(cache);
}

void LeaveFastPath() {
  if (CurrentCache() == nullptr) return;
  ThreadCache::FlushThread();
  thread_state.SetTag(0);
}

}  // namespace quarry
