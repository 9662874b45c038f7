#include "tcache/cache_registry.h"

#include <new>

#include "arena/process_arenas.h"
#include "arena/settings.h"

namespace quarry {

constinit CacheRegistry cache_registry;

ThreadCache* CacheRegistry::Unpark(ThreadCache** link) {
  ThreadCache* const cache = *link;
  *link = cache->next_closed;
  if (cache->is_parked()) --parked_count_;
  cache->SetParked(false);
  cache->is_bereft = false;
  return cache;
}

template <typename IsWanted>
ThreadCache* CacheRegistry::TryTakeParked(IsWanted is_wanted) {
  // A thread that looks at it has empty magazines.
  if (settings.perturb_byte.load(std::memory_order_relaxed) != 0) return nullptr;
  LockHolder hold(lock_);
  for (ThreadCache** link = &parked_; *link != nullptr;
       link = &(*link)->next_closed) {
    if (is_wanted(*link) && IsNear(*(*link)->arena())) return Unpark(link);
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
      cache->SetParked(true);
      cache->parked_looks = 0;
      cache->next_closed = parked_;
      parked_ = cache;
      ++parked_count_;
      untold_parked_.Add(held_bytes);
      return;
    }
  }
  Give(cache);
}

ThreadCache* CacheRegistry::TakeDue(ThreadCache** link, bool all, size_t* most,
                                    ThreadCache* due) {
  while (*link != nullptr) {
    ThreadCache* const cache = *link;
    if (!all && cache->parked_looks < kLooksWhileParked) {
      ++cache->parked_looks;
    } else if (*most > 0) {
      --*most;
      (void)Unpark(link);
      cache->next_closed = due;
      due = cache;
      continue;
    }
    link = &cache->next_closed;
  }
  return due;
}

bool CacheRegistry::CloseParked(bool all, size_t most) {
  ThreadCache* due = nullptr;
  bool is_any_left;
  {
    LockHolder hold(lock_);
    due = TakeDue(&parked_, all, &most, due);
    due = TakeDue(&bereft_, all, &most, due);
    is_any_left = parked_ != nullptr || bereft_ != nullptr;
  }
  while (due != nullptr) {
    ThreadCache* const next = due->next_closed;
    Give(due);
    due = next;
  }
  return is_any_left;
}

void CacheRegistry::BereaveAllBut(const ThreadCache* mine, const ThreadCache* stray) {
  LockHolder hold(lock_);
  ForEachLocked([&](ThreadCache* cache) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!cache->is_open || cache->is_parked() || cache->is_bereft || cache == mine ||
        cache == stray) {
      return;
    }
    cache->is_bereft = true;
    cache->parked_looks = 0;
    cache->next_closed = bereft_;
    bereft_ = cache;
  });
}

}  // namespace quarry
