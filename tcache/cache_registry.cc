#include "tcache/cache_registry.h"

#include <new>

#include "arena/process_arenas.h"
#include "arena/settings.h"

namespace quarry {

constinit CacheRegistry cache_registry;

void CacheRegistry::AddParked(ThreadCache* cache) {
  cache->SetParked(true);
  cache->parked_looks = 0;
  cache->next_closed = parked_;
  parked_ = cache;
  ++parked_count_;
}

ThreadCache* CacheRegistry::Unpark(ThreadCache** link) {
  ThreadCache* const cache = *link;
  *link = cache->next_closed;
  cache->SetParked(false);
  cache->is_bereft = false;
  --parked_count_;
  return cache;
}

template <typename IsWanted>
ThreadCache* CacheRegistry::TryTakeParked(IsWanted is_wanted) {
  // A thread that looks at it has empty magazines.
  if (settings.perturb_byte.load(std::memory_order_relaxed) != 0) return nullptr;
  LockHolder hold(lock_);
  for (ThreadCache** link = &parked_; *link != nullptr;
       link = &(*link)->next_closed) {
    if (!(*link)->is_bereft && is_wanted(*link) && IsNear(*(*link)->arena())) {
      return Unpark(link);
    }
  }
  return nullptr;
}

ThreadCache* CacheRegistry::TakeForThread() {
  ThreadCache* const parked = TryTakeParked([](ThreadCache*) { return true; });
  return parked != nullptr ? parked : Take();
}

ThreadCache* CacheRegistry::TakeParked(ThreadCache* cache) {
  return TryTakeParked([cache](ThreadCache* parked) { return parked == cache; });
}

ThreadCache* CacheRegistry::Take() {
  LockHolder hold(lock_);
  ThreadCache* cache = closed_;
  Tag tag;
  if (cache != nullptr) {
    closed_ = cache->next_closed;
    tag = cache->tag();
  } else {
    tag = MakeTag();
    if (tag == kNoTag) return nullptr;
    void* memory = metadata_pool.Allocate(ThreadCache::AllocationBytes());
    if (memory == nullptr) return nullptr;
    cache = new (memory) ThreadCache(ThreadCache::InZeroMemory());
    cache->next_in_registry = first();
    first_.store(cache, std::memory_order_release);
  }
  cache->Open(tag, &JoinArena());
  cache->is_open = true;
  return cache;
}

Tag CacheRegistry::MakeTag() {
  // Ids from 1 to the one before that of kNobodysTag: 0 is the tag of threads without
  // a cache.
  if (tags_made_ + 1 >= kNobodysTag / kOwnerUnit) return kNoTag;
  return ++tags_made_ * kOwnerUnit;
}

Tag CacheRegistry::NewTag() {
  LockHolder hold(lock_);
  return MakeTag();
}

void CacheRegistry::Give(ThreadCache* cache) {
  cache->Close();
  LockHolder hold(lock_);
  LeaveArena(*cache->arena());
  cache->is_open = false;
  cache->next_closed = closed_;
  closed_ = cache;
}

void CacheRegistry::Park(ThreadCache* cache) {
  const size_t most = settings.parked_caches.load(std::memory_order_relaxed);
  if (most != 0 &&
      settings.perturb_byte.load(std::memory_order_relaxed) == 0) {
    const size_t held_bytes = cache->Rest();
    LockHolder hold(lock_);
    if (held_bytes <= ThreadCache::kMostRestingBytes && parked_count_ < most) {
      AddParked(cache);
      untold_parked_.Add(held_bytes);
      return;
    }
  }
  Give(cache);
}

bool CacheRegistry::CloseParked(bool all) {
  ThreadCache* due = nullptr;
  bool is_any_left;
  {
    LockHolder hold(lock_);
    ThreadCache** link = &parked_;
    while (*link != nullptr) {
      if (!all && (*link)->parked_looks++ < kLooksWhileParked) {
        link = &(*link)->next_closed;
        continue;
      }
      ThreadCache* const cache = Unpark(link);
      cache->next_closed = due;
      due = cache;
    }
    is_any_left = parked_ != nullptr;
  }
  while (due != nullptr) {
    ThreadCache* const next = due->next_closed;
    Give(due);
    due = next;
  }
  return is_any_left;
}

bool CacheRegistry::ParkAfterFork(const ThreadCache* mine, const ThreadCache* stray) {
  LockHolder hold(lock_);
  ForEachLocked([&](ThreadCache* cache) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!cache->is_open || cache == mine || cache == stray) return;
    if (!cache->is_parked()) AddParked(cache);
    cache->is_bereft = true;
  });
  return parked_ != nullptr;
}

}  // namespace quarry
