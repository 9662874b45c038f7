#include "tcache/cache_registry.h"

#include <new>

#include "arena/process_arenas.h"

namespace quarry {

constinit CacheRegistry cache_registry;

ThreadCache* CacheRegistry::Take() {
  LockHolder hold(lock_);
  ThreadCache* cache = closed_;
  Tag tag;
  if (cache != nullptr) {
    closed_ = cache->next_closed;
    tag = cache->tag();
  } else {
    // Ids from 1 to the one before kNobody: 0 is the tag of threads without a
    // cache.
    if (made_ + 1 >= kNobody / kOwnerUnit) return nullptr;
    void* memory = metadata_pool.Allocate(ThreadCache::AllocationBytes());
    if (memory == nullptr) return nullptr;
    cache = new (memory) ThreadCache;
    tag = static_cast<Tag>(++made_) * kOwnerUnit;
    cache->next_in_registry = all_;
    all_ = cache;
  }
  cache->Open(tag, &NextArena());
  cache->is_open = true;
  ++open_;
  return cache;
}

void CacheRegistry::Give(ThreadCache* cache) {
  cache->Close();
  LockHolder hold(lock_);
  cache->is_open = false;
  cache->next_closed = closed_;
  closed_ = cache;
  --open_;
}

size_t CacheRegistry::OpenCaches() {
  LockHolder hold(lock_);
  return open_;
}

}  // namespace quarry
