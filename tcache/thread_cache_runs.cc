// The page runs that a thread keeps: the part of thread_cache.h about run_cache.h.
#include "arena/maintenance_signal.h"
#include "tcache/thread_cache.h"

namespace quarry {

void* ThreadCache::TakeRunUnbiased(size_t list) {
  if (CachedRunBytes() == 0 || !lock_.TryAcquireAsOwner()) return nullptr;
  void* const start = runs_.Take(list);
  lock_.ReleaseAsOwner();
  return start;
}

void ThreadCache::FreeRun(Run* run) {
  ThreadCache* cache = thread_state.cache;
  if (cache == &no_cache || run->arena() != cache->arena()) {
    return run->arena()->Deallocate(run);
  }
  // Two threads that free it at once may both get here: see RunCache.
  run->state.store(Run::kCached, std::memory_order_relaxed);
  // As TakeRunUnbiased().
  if (ABSL_PREDICT_FALSE(!cache->lock_.TryAcquireAsOwner())) {
    return run->arena()->Deallocate(run);
  }
  cache->KeepRun(run);
  cache->lock_.ReleaseAsOwner();
}

void ThreadCache::KeepRun(Run* run) {
  const size_t bytes = run->bytes();
  if (RunCache::ListOfRun(bytes) == RunCache::kNoList) return arena()->Deallocate(run);
  while (Run* other = runs_.PopToFit(bytes)) arena()->Deallocate(other);
  (void)runs_.Put(run);
  maintenance_signal.NoteKept(runs_.cached_bytes());
}

size_t ThreadCache::TryGrowRun(Run* run, size_t least_pages,
                               size_t most_pages) {
  ThreadCache* const cache = thread_state.cache;
  Arena* const arena = run->arena();
  size_t pages;
  do {
    pages = arena->TryGrow(run, least_pages, most_pages);
  } while (pages == 0 && cache->arena() == arena &&
           cache->TryGiveUpBehind(run, least_pages));
  return pages;
}

bool ThreadCache::TryGiveUpBehind(const Run* run, size_t least_pages) {
  if (CachedRunBytes() == 0) return false;
  size_t bytes;
  Run* const kept = arena()->KeptBehind(run, least_pages, &bytes);
  // As TakeRunUnbiased().
  if (kept == nullptr || !lock_.TryAcquireAsOwner()) return false;
  // It may be another thread's, or have left the cache since.
  const bool is_removed = runs_.TryRemove(kept, bytes);
  if (is_removed) arena()->Deallocate(kept);
  lock_.ReleaseAsOwner();
  return is_removed;
}

}  // namespace quarry
