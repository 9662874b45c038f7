// Where threads and processes begin and end, as far as caches are concerned.
//
// A thread gets its cache with its first allocation, or when it has freed many
// blocks of others or one of a thread that is gone, and gives it up in the
// destructor of a pthread key: the next thread has it as it is, or it is closed
// (cache_registry.h). Destructors of other keys, and what libc frees after them,
// may still allocate and free. Such a thread has no cache again: it allocates from
// the stray cache, which all of them share under its lock, and its frees are
// remote.
//
// fork() copies one thread of many. All locks are taken before it, in the order
// of their ranks, so that the child finds nothing half changed but what a
// thread changes without a lock: its magazines, their spares, its notes of cold
// blocks, its remote batch, and whether it is about to take the lock of its cache.
// Every intermediate state of the lists is a list,
// or one list in two places, which the child sees
// (ThreadCache::RepairMoves): at most the one block that a vanished thread
// was about to push or note is lost, and the blocks of one word that it was
// about to mark. In the child the caches of the vanished threads are bereft
// (cache_registry.h).
//
// Thread-safety: all functions on any thread.
#ifndef QUARRY_TCACHE_THREAD_LIFE_H_
#define QUARRY_TCACHE_THREAD_LIFE_H_

#include "tcache/thread_cache.h"

namespace quarry {

// Has the C library call at the end of each thread and around fork(), if it does
// not yet. Called before the constructors of other libraries, as far as there is a way
// (alloc/preinit.cc), else before main(), and with the first cache: fork handlers of
// others that are registered later run outside of these, where no lock is held, and so
// may wait for threads that allocate. Those that are registered earlier may allocate.
void RegisterHandlers();

// The calling thread's cache, made if need be; nullptr when there is no memory
// for one or the thread has given it up.
ThreadCache* MakeCurrentCache();
inline ThreadCache* CurrentCache() {
  ThreadCache* cache = thread_state.cache;
  return ABSL_PREDICT_TRUE(cache != &no_cache) ? cache : MakeCurrentCache();
}

// The same for a thread that has no cache yet, nor has given one up, and has found
// blocks of `cache`: that one, if a thread has parked it; else nullptr, with nothing
// changed.
ThreadCache* TakeCacheOver(ThreadCache* cache);

// The cache of threads that have none; its lock is held for each use. nullptr
// when there is no memory for it.
ThreadCache* StrayCache();
// Whether `cache` is that one. Never makes it; relaxed, so who asks while another thread makes
// it may hear no.
bool IsStrayCache(const ThreadCache* cache);

// Gives the calling thread's cache up, as its exit does. For tests.
void EndThread();

// From now on no magazine of the calling thread holds a block, and each of its
// calls takes the slow path, where settings.perturb_byte is looked at.
void LeaveFastPath();

}  // namespace quarry

#endif  // QUARRY_TCACHE_THREAD_LIFE_H_
