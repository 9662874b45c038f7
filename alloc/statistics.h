// What the heap holds and has done, as figures, and the two ways to print them.
//
// Thread-safety: a HeapStatistics is plain data of its holder. The printers may
//   run on any number of threads at once.
// Invariant: mapped_bytes = live_bytes + cached_bytes + slab_free_bytes +
//   arena_free_bytes + huge_cached_bytes + metadata_bytes, and live_bytes =
//   live_small_bytes + live_medium_bytes + live_huge_bytes. Exact when no other
//   thread runs; otherwise each term is right for a moment of its own. Where the system
//   refuses process_vm_readv(), what other threads have at hand counts as live.
// Cost: printing never allocates, so it works at exit and out of memory.
// Size: a HeapStatistics takes 3.3 KiB of stack, to gather it as much again and
//   what it is read from, 9 KiB in all.
#ifndef QUARRY_ALLOC_STATISTICS_H_
#define QUARRY_ALLOC_STATISTICS_H_

#include <stddef.h>

#include "absl/base/attributes.h"

namespace quarry {

struct SizeClassStatistics {
  size_t block_bytes = 0;
  size_t slabs = 0;
  size_t live_blocks = 0;
  size_t free_blocks = 0;  // Kept by threads, and in slabs.
};

struct HeapStatistics {
  // At least the number of size classes; those in use are the first
  // `size_classes`, smallest first.
  static constexpr size_t kMaxSizeClasses = 96;

  size_t mapped_bytes = 0;
  size_t peak_mapped_bytes = 0;

  size_t live_bytes = 0;
  size_t cached_bytes = 0;       // Free, and kept by threads.
  size_t slab_free_bytes = 0;    // Free and fresh blocks, and tails of slabs.
  size_t arena_free_bytes = 0;   // Free page runs.
  size_t huge_cached_bytes = 0;  // Freed mappings kept for reuse.
  size_t metadata_bytes = 0;     // Descriptors, bitmaps, page map.

  size_t live_small_bytes = 0;
  size_t live_medium_bytes = 0;
  size_t live_huge_bytes = 0;
  size_t live_huge_blocks = 0;

  size_t threads = 0;  // Thread caches in use.
  size_t arenas = 0;
  size_t segments = 0;
  size_t slabs = 0;
  size_t slabs_orphaned = 0;

  // Since the process started.
  size_t os_map_calls = 0;
  size_t os_unmap_calls = 0;
  size_t os_purge_calls = 0;
  size_t refills = 0;
  size_t flushes = 0;
  size_t remote_frees = 0;
  size_t drained_blocks = 0;
  size_t slabs_made = 0;
  size_t slabs_returned = 0;
  size_t adoptions = 0;

  size_t mappings = 0;           // That hold blocks: segments, huge blocks.
  size_t arena_dirty_bytes = 0;  // Of arena_free_bytes, what may go back.
  size_t soft_limit_bytes = 0;   // The one in force; 0 is none.
  size_t hard_limit_bytes = 0;

  size_t size_classes = 0;
  SizeClassStatistics by_class[kMaxSizeClasses];
};

// Takes the next `bytes` characters of a text.
using TextSink = void (*)(void* context, const char* text, size_t bytes);

// One readable page. Lines at most 80 characters.
ABSL_ATTRIBUTE_COLD void PrintStatistics(const HeapStatistics& statistics,
                                         TextSink sink, void* context);

// The same page to a file descriptor, by write(2).
ABSL_ATTRIBUTE_COLD void PrintStatistics(const HeapStatistics& statistics,
                                         int file_descriptor);

// One XML element, <malloc version="1">, with the parts that glibc's
// malloc_info() has and with their meaning there, and Quarry's own figures in
// an element <quarry>.
ABSL_ATTRIBUTE_COLD void PrintStatisticsXml(const HeapStatistics& statistics,
                                            TextSink sink, void* context);

}  // namespace quarry

#endif  // QUARRY_ALLOC_STATISTICS_H_
