// What the rooms have, summed up and checked: the parts of heap.h that look at all of them.
#include <algorithm>
#include <atomic>
#include <cstddef>

#include "alloc/heap.h"
#include "alloc/statistics.h"
#include "arena/arena.h"
#include "arena/huge.h"
#include "arena/limits.h"
#include "arena/metadata.h"
#include "arena/page_map.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "arena/settings.h"
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/remote_free.h"
#include "tcache/size_classes.h"
#include "tcache/thread_cache.h"
#include "tcache/thread_life.h"

namespace quarry {

HeapStatistics GatherStatistics() {
  HeapStatistics s;
  ThreadCache::ClassStatistics classes[kClasses] = {};
  ThreadCache* const mine = thread_state.cache;

  size_t cached_run_bytes = 0;
  cache_registry.ForEach([&](ThreadCache* cache) {
    const bool owner_rests =
        cache == mine || cache->is_parked() || cache->is_bereft || !cache->is_open;
    const ThreadCache::Counters counters =
        cache->AddStatistics(classes, owner_rests);
    s.refills += counters.refills;
    s.flushes += counters.flushes;
    s.drained_blocks += counters.drained_blocks;
    s.slabs_made += counters.slabs_made;
    s.slabs_returned += counters.slabs_returned;
    s.adoptions += counters.adoptions;
    s.remote_frees += cache->remote_batch().frees();
    cached_run_bytes += cache->CachedRunBytes();
    if (cache->is_open && !cache->is_parked() && !cache->is_bereft &&
        !IsStrayCache(cache)) {
      ++s.threads;
    }
  });
  s.cached_bytes += cached_run_bytes;
  s.remote_frees += RemoteFreesWithoutCache();
  for (size_t i = 0; i < ArenasMade(); ++i) {
    OrphansOf(i).ForEach([&](Slab* slab) {
      ThreadCache::ClassStatistics& c = classes[slab->size_class()];
      ++c.slabs;
      c.used_blocks += slab->used();
      c.free_blocks += slab->free_blocks();
      ++s.slabs_orphaned;
    });
  }

  static_assert(kClasses - kEightByteClass <= HeapStatistics::kMaxSizeClasses);
  size_t slab_bytes = 0;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const ThreadCache::ClassStatistics& from = classes[c];
    // At most: they are counted one after the other.
    const size_t cached =
        std::min(from.depot_blocks + from.out_of_reach_blocks, from.used_blocks);
    const size_t live = from.used_blocks - cached;
    slab_bytes += from.slabs * kSlabBytes;
    s.slabs += from.slabs;
    s.live_small_bytes += live * BlockBytes(c);
    s.cached_bytes += cached * BlockBytes(c);
    s.slab_free_bytes +=
        from.slabs * kSlabBytes - from.used_blocks * BlockBytes(c);
    s.by_class[s.size_classes++] = {BlockBytes(c), from.slabs, live,
                                    from.free_blocks + cached};
  }

  size_t run_bytes = 0;
  for (size_t i = 0; i < ArenasMade(); ++i) {
    const Arena::Statistics arena = ArenaAt(i).statistics();
    run_bytes += arena.in_use_bytes;
    s.arena_free_bytes += arena.free_bytes;
    s.arena_dirty_bytes += arena.free_dirty_bytes;
    s.segments += arena.segments;
    if (arena.mapped_bytes != 0) ++s.arenas;
  }
  // No less than nothing: slabs were made and given back since theirs were counted.
  s.live_medium_bytes =
      run_bytes - std::min(run_bytes, slab_bytes + cached_run_bytes);

  const HugeBlocks::Statistics huge = huge_blocks.statistics();
  s.live_huge_bytes = huge.live_bytes;
  s.live_huge_blocks = huge.live_blocks;
  s.huge_cached_bytes = huge.cached_bytes;
  s.mappings = s.segments + huge.live_blocks + huge.cached_blocks;

  s.live_bytes = s.live_small_bytes + s.live_medium_bytes + s.live_huge_bytes;
  s.metadata_bytes = metadata_pool.mapped_bytes() + PageMap::LeafBytes();

  const PageSource::Statistics os = OsPages().statistics();
  s.mapped_bytes = os.mapped_bytes;
  s.peak_mapped_bytes = os.peak_mapped_bytes;
  s.os_map_calls = os.map_calls;
  s.os_unmap_calls = os.unmap_calls;
  s.os_purge_calls = os.purge_calls;
  s.soft_limit_bytes = memory_limits.SoftLimit();
  s.hard_limit_bytes =
      settings.hard_limit_bytes.load(std::memory_order_relaxed);
  return s;
}

void VerifyHeap() {
  ThreadCache* const mine = thread_state.cache;
  cache_registry.ForEach([&](ThreadCache* cache) {
    cache->Verify(cache == mine || cache->is_parked());
  });
  for (size_t i = 0; i < ArenasMade(); ++i) {
    OrphansOf(i).ForEach([](Slab* slab) { slab->Verify(); });
    ArenaAt(i).Verify();
  }
  huge_blocks.Verify();
}

}  // namespace quarry
