#include "alloc/quarry.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "alloc/calls.h"
#include "alloc/heap.h"
#include "alloc/statistics.h"
#include "arena/limits.h"

// Fast paths first. Each of the others is one call of calls.h or heap.h.

void* quarry_malloc(size_t bytes) noexcept { return quarry::Malloc(bytes); }

void quarry_free(void* block) noexcept { quarry::Free(block); }

void quarry_free_sized(void* block, size_t bytes) noexcept {
  quarry::DeallocateSized(block, bytes);
}

void quarry_free_aligned_sized(void* block, size_t alignment,
                               size_t bytes) noexcept {
  quarry::DeallocateAlignedSized(block, bytes, alignment);
}

void* quarry_malloc_aligned8(size_t bytes) noexcept {
  return quarry::MallocAligned8(bytes);
}

void* quarry_calloc(size_t count, size_t bytes_each) noexcept {
  return quarry::Calloc(count, bytes_each);
}

void* quarry_memalign(size_t alignment, size_t bytes) noexcept {
  return quarry::Memalign(alignment, bytes);
}

void* quarry_aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return quarry::Memalign(alignment, bytes);
}

int quarry_posix_memalign(void** block, size_t alignment,
                          size_t bytes) noexcept {
  return quarry::PosixMemalign(block, alignment, bytes);
}

void* quarry_valloc(size_t bytes) noexcept { return quarry::Valloc(bytes); }

void* quarry_pvalloc(size_t bytes) noexcept { return quarry::Pvalloc(bytes); }

quarry_allocation_t quarry_allocate_at_least(size_t bytes) noexcept {
  void* block = quarry::Malloc(bytes);
  return {block, quarry::UsableBytes(block)};
}

void* quarry_realloc(void* block, size_t bytes) noexcept {
  return quarry::Realloc(block, bytes);
}

void* quarry_reallocarray(void* block, size_t count,
                          size_t bytes_each) noexcept {
  return quarry::Reallocarray(block, count, bytes_each, quarry::Realloc);
}

void* quarry_reallocf(void* block, size_t bytes) noexcept {
  return quarry::Reallocf(block, bytes, quarry::Realloc, quarry::Free);
}

size_t quarry_try_expand(void* block, size_t least_bytes,
                         size_t most_bytes) noexcept {
  if (block == nullptr || least_bytes > most_bytes) return 0;
  return quarry::TryExpand(block, least_bytes, most_bytes);
}

size_t quarry_malloc_usable_size(const void* block) noexcept {
  return quarry::UsableBytes(block);
}

size_t quarry_good_size(size_t bytes) noexcept {
  if (bytes > size_t{PTRDIFF_MAX}) return 0;
  const size_t good_bytes = quarry::GoodBytes(bytes);
  return good_bytes > size_t{PTRDIFF_MAX} ? 0 : good_bytes;
}

void quarry_thread_flush() noexcept { quarry::FlushThread(); }

size_t quarry_release_memory(size_t keep_bytes) noexcept {
  return quarry::ReleaseMemory(keep_bytes);
}

int quarry_set_memory_limit(size_t soft_bytes, size_t hard_bytes) noexcept {
  if (hard_bytes != 0 && soft_bytes > hard_bytes) return EINVAL;
  quarry::SetMemoryLimits(soft_bytes, hard_bytes);
  return 0;
}

void quarry_set_pressure_callback(quarry_pressure_callback_t callback,
                                  void* context) noexcept {
  quarry::SetPressureCallback(callback, context);
}

int quarry_statistics(quarry_statistics_t* statistics) noexcept {
  constexpr size_t kFirstEditionBytes = offsetof(quarry_statistics_t, mappings);
  const size_t given = statistics->size;
  if (given < kFirstEditionBytes) return EINVAL;
  const quarry::HeapStatistics heap = quarry::GatherStatistics();
  const quarry_statistics_t all = {
      .size = given,
      .mapped_bytes = heap.mapped_bytes,
      .peak_mapped_bytes = heap.peak_mapped_bytes,
      .live_bytes = heap.live_bytes,
      .cached_bytes = heap.cached_bytes,
      .slab_free_bytes = heap.slab_free_bytes,
      .arena_free_bytes = heap.arena_free_bytes,
      .huge_cached_bytes = heap.huge_cached_bytes,
      .metadata_bytes = heap.metadata_bytes,
      .live_small_bytes = heap.live_small_bytes,
      .live_medium_bytes = heap.live_medium_bytes,
      .live_huge_bytes = heap.live_huge_bytes,
      .live_huge_blocks = heap.live_huge_blocks,
      .threads = heap.threads,
      .arenas = heap.arenas,
      .segments = heap.segments,
      .slabs = heap.slabs,
      .slabs_orphaned = heap.slabs_orphaned,
      .os_map_calls = heap.os_map_calls,
      .os_unmap_calls = heap.os_unmap_calls,
      .os_purge_calls = heap.os_purge_calls,
      .refills = heap.refills,
      .flushes = heap.flushes,
      .remote_frees = heap.remote_frees,
      .drained_blocks = heap.drained_blocks,
      .slabs_made = heap.slabs_made,
      .slabs_returned = heap.slabs_returned,
      .adoptions = heap.adoptions,
      .mappings = heap.mappings,
      .arena_dirty_bytes = heap.arena_dirty_bytes,
      .soft_limit_bytes = heap.soft_limit_bytes,
      .hard_limit_bytes = heap.hard_limit_bytes,
  };
  memset(statistics, 0, given);
  memcpy(statistics, &all, std::min(given, sizeof(all)));
  return 0;
}

size_t quarry_size_class_statistics(quarry_size_class_statistics_t* classes,
                                    size_t capacity) noexcept {
  const quarry::HeapStatistics heap = quarry::GatherStatistics();
  for (size_t i = 0; i < heap.size_classes && i < capacity; ++i) {
    const quarry::SizeClassStatistics& from = heap.by_class[i];
    classes[i] = {from.block_bytes, from.slabs, from.live_blocks,
                  from.free_blocks};
  }
  return heap.size_classes;
}

void quarry_statistics_print(int file_descriptor) noexcept {
  quarry::PrintHeapStatistics(file_descriptor);
}

void quarry_verify() noexcept { quarry::VerifyHeap(); }
