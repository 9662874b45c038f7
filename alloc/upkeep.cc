#include "alloc/upkeep.h"

#include <stdint.h>

#include <algorithm>
#include <atomic>

#include "alloc/heap.h"
#include "arena/huge.h"
#include "arena/maintenance_signal.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "arena/settings.h"
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/thread_cache.h"
#include "tcache/thread_life.h"

namespace quarry {

Arena& ArenaOfThread() {
  ThreadCache* cache = CurrentCache();
  return cache != nullptr ? *cache->arena() : ArenaAt(0);
}

bool PurgeForRetry(size_t bytes) {
  const size_t most_bytes =
      std::max(OsPages().statistics().mapped_bytes,
               settings.hard_limit_bytes.load(std::memory_order_relaxed));
  if (bytes > most_bytes) return false;
  // Whatever comes of it: the maintenance thread may have been before us.
  static_cast<void>(ReleaseMemory(0));
  return true;
}

void RelieveDuePressure() {
  memory_limits.Relieve([] { static_cast<void>(ReleaseMemory(0)); });
}

void FlushThread() {
  ThreadCache::FlushThread();
  // Slabs may have free pages now.
  maintenance_signal.NoteWork();
  StartMaintenanceIfWanted();
}

size_t ReleaseMemory(size_t pad_bytes) {
  const size_t purged_before = OsPages().statistics().purged_bytes;
  ThreadCache::FlushThread();
  static_cast<void>(cache_registry.CloseParked(/*all=*/true));
  // What other threads keep, but for their magazines and remote batches.
  bool gave_back = false;
  cache_registry.ForEachUnlocked([&](ThreadCache* cache) {
    static_cast<void>(cache->Tidy(true, &gave_back, SIZE_MAX));
  });
  for (size_t i = 0; i < ArenasMade(); ++i) {
    static_cast<void>(OrphansOf(i).Tidy(true, &gave_back, SIZE_MAX));
  }
  // Pages of slabs, and what arenas have purged over their cap; in other threads as well.
  size_t released = OsPages().statistics().purged_bytes - purged_before;
  released += huge_blocks.Purge();
  Arena& own = ArenaOfThread();
  for (size_t i = 0; i < ArenasMade(); ++i) {
    Arena& arena = ArenaAt(i);
    released += arena.Purge(&arena == &own ? pad_bytes : 0);
  }
  return released;
}

}  // namespace quarry
