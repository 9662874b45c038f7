#ifndef QUARRY_TESTS_TCACHE_BLOCKS_H_
#define QUARRY_TESTS_TCACHE_BLOCKS_H_

#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "arena/process_arenas.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/remote_free.h"
#include "tcache/size_classes.h"
#include "tcache/slab.h"
#include "tcache/thread_cache.h"
#include "tests/arena/sanitizers.h"

namespace quarry {

// The exit of a thread shows at once what it does in the end. Tests of parked
// caches set this anew.
inline const bool exits_close_caches = (settings.parked_caches = 0, true);

// Blocks as the room above hands them out, up to kSmallMaxBytes.

inline void* AllocateOfClass(SizeClass size_class) {
  void* const p = size_class == kEightByteClass
                      ? nullptr
                      : ThreadCache::TryPop(BlockBytes(size_class));
  return p != nullptr ? p : ThreadCache::Allocate(size_class);
}

inline void* Allocate(size_t bytes) { return AllocateOfClass(ClassOf(bytes)); }

// On the fast path. Otherwise false, with nothing changed.
inline bool TryPush(void* p) {
  Magazine* magazine;
  return ThreadCache::FindMagazine(p, &magazine) &&
         ThreadCache::TryPush(magazine, p);
}
inline bool TryPushSized(void* p, size_t bytes) {
  Magazine* magazine;
  return ThreadCache::FindMagazine(p, &magazine) &&
         ThreadCache::TryPushSized(magazine, p, bytes);
}
inline bool TryPushCold(void* p) {
  Magazine* magazine;
  bool notes_are_full;
  if (!ThreadCache::FindMagazine(p, &magazine) ||
      !ThreadCache::TryPushCold(magazine, p, &notes_are_full)) {
    return false;
  }
  if (notes_are_full) thread_state.cache->FlushNotes();
  return true;
}

inline bool TryPushColdSized(void* p, size_t bytes) {
  Magazine* magazine;
  bool notes_are_full;
  if (!ThreadCache::FindMagazine(p, &magazine) ||
      !ThreadCache::TryPushColdSized(magazine, p, bytes, &notes_are_full)) {
    return false;
  }
  if (notes_are_full) thread_state.cache->FlushNotes();
  return true;
}

inline void Free(void* p) {
  if (TryPush(p)) return;
  if (!TryPushCold(p)) ThreadCache::Free(Slab::Of(p), p);
}

// As free() does for a block of another thread's slab.
inline void FreeLater(void* p) {
  RemoteBlock block;
  QUARRY_CHECK(RemoteBlock::Find(p, PageMap::TagOf(p), &block));
  ThreadCache* const cache = thread_state.cache;
  if (cache == &no_cache) {
    (void)FreeRemotelyWithoutCache(p, block, true);
  } else if (!cache->remote_batch().TryAddToWord(block)) {
    (void)FreeRemotelyLater(p, block);
  } else if (cache->remote_batch().IsFull()) {
    (void)FlushRemoteFrees(cache);
  }
}

// As free() does for any block of a slab.
inline void FreeHereOrLater(void* p) {
  Magazine* magazine;
  if (ThreadCache::FindMagazine(p, &magazine)) return Free(p);
  FreeLater(p);
}

inline ThreadCache* OwnerOf(const void* p) {
  return Slab::Of(p)->owner.load(std::memory_order_relaxed);
}

// How many caches are neither closed nor parked.
inline size_t OpenCaches() {
  size_t count = 0;
  cache_registry.ForEach([&](const ThreadCache* cache) {
    if (cache->is_open && !cache->is_parked()) ++count;
  });
  return count;
}

// What all slabs together take from the arenas.
inline size_t SlabBytesInUse() {
  size_t bytes = 0;
  for (size_t i = 0; i < ArenasMade(); ++i) {
    bytes += ArenaAt(i).statistics().in_use_bytes;
  }
  return bytes;
}

inline size_t CountOrphans() {
  size_t count = 0;
  for (size_t i = 0; i < ArenasMade(); ++i) {
    OrphansOf(i).ForEach([&](Slab*) { ++count; });
  }
  return count;
}

inline bool IsOrphan(const Slab* slab) {
  bool found = false;
  OrphansOf(slab->arena()->index()).ForEach([&](Slab* orphan) {
    found = found || orphan == slab;
  });
  return found;
}

// Aborts when an invariant does not hold anywhere.
inline void VerifyAll() {
  cache_registry.ForEach([](ThreadCache* cache) {
    cache->Verify(cache == thread_state.cache);
  });
  for (size_t i = 0; i < ArenasMade(); ++i) {
    OrphansOf(i).ForEach([](Slab* slab) {
      slab->Verify();
      QUARRY_CHECK(slab->owner.load(std::memory_order_relaxed) == nullptr);
      QUARRY_CHECK(slab->used() > 0);
    });
    ArenaAt(i).Verify();
  }
}

// The whole of a report, for EXPECT_EXIT with testing::Eq.
inline std::string Hex(const void* p) {
  LineBuffer line;
  line.AppendHex(p);
  return std::string(line.text(), line.bytes());
}
inline std::string DoubleFreeText(const void* p) {
  const Slab* const slab = Slab::Of(p);
  return "quarry: double free of " + Hex(p) + " (class " +
         std::to_string(slab->block_bytes()) + ", slab " + Hex(slab->start()) +
         "), aborting\n";
}
inline std::string CorruptLinkText(const void* p) {
  return "quarry: the free block " + Hex(p) +
         " was written to after its free, aborting\n";
}

// Runs `step` on a thread that then ends.
template <typename Step>
void OnAnotherThread(Step step) {
  std::thread(std::move(step)).join();
}

// A thread that does one step after another, each of them while the test waits:
// what threads do at the same time, in an order that the test says.
class Worker {
 public:
  Worker() : thread_([this] { Work(); }) {}
  ~Worker() { End(); }

  void Do(std::function<void()> step) {
    std::unique_lock<std::mutex> hold(mutex_);
    step_ = std::move(step);
    changed_.notify_all();
    changed_.wait(hold, [this] { return step_ == nullptr; });
  }

  // Lets the thread exit and waits until it has.
  void End() {
    if (!thread_.joinable()) return;
    {
      std::lock_guard<std::mutex> hold(mutex_);
      ended_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

 private:
  void Work() {
    std::unique_lock<std::mutex> hold(mutex_);
    for (;;) {
      changed_.wait(hold, [this] { return ended_ || step_ != nullptr; });
      if (step_ == nullptr) return;
      step_();
      step_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> step_;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace quarry

#endif  // QUARRY_TESTS_TCACHE_BLOCKS_H_
