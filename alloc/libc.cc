// Every call by which a program may reach libc's malloc, so that none of them
// is left to libc's own heap.
//
// All of them are in this one file because of static linking: a program that
// finds even one of these names only in libc.a gets libc's malloc.o with it,
// and with that a second definition of all the others.
//
// Thread-safety: any number of threads at once.
// Source: glibc 2.36, whose semantics these are; C23 for free_sized() and
//   free_aligned_sized(); BSD for reallocf().
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "alloc/calls.h"
#include "alloc/heap.h"
#include "alloc/quarry.h"
#include "alloc/statistics.h"
#include "arena/settings.h"

using quarry::HeapStatistics;

// One function under another of libc's names. g++ wants both declared alike.
#if defined(__clang__)
#define QUARRY_ALIAS(name) noexcept QUARRY_PUBLIC __attribute__((alias(#name)))
#else
#define QUARRY_ALIAS(name) \
  noexcept QUARRY_PUBLIC __attribute__((alias(#name), copy(name)))
#endif

namespace {

// What has the name of `function` in the process, as glibc's calls use it: a program or
// a tool may have a realloc() of its own, and not know of what calls it here. clang
// would call the one of this file.
template <typename Function>
Function* ByName(Function* function) {
  asm("" : "+r"(function));
  return function;
}

}  // namespace

extern "C" {

// ------------------------------------------------------------ allocating

// Its instructions are on two lines, wherever the linker puts what is before.
__attribute__((aligned(64))) QUARRY_PUBLIC void* malloc(
    size_t bytes) noexcept {
  return quarry::Malloc(bytes);
}

QUARRY_PUBLIC void* calloc(size_t count, size_t bytes_each) noexcept {
  return quarry::Calloc(count, bytes_each);
}

QUARRY_PUBLIC void* memalign(size_t alignment, size_t bytes) noexcept {
  return quarry::Memalign(alignment, bytes);
}

QUARRY_PUBLIC void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return quarry::Memalign(alignment, bytes);
}

QUARRY_PUBLIC int posix_memalign(void** block, size_t alignment,
                                 size_t bytes) noexcept {
  return quarry::PosixMemalign(block, alignment, bytes);
}

QUARRY_PUBLIC void* valloc(size_t bytes) noexcept {
  return quarry::Valloc(bytes);
}

QUARRY_PUBLIC void* pvalloc(size_t bytes) noexcept {
  return quarry::Pvalloc(bytes);
}

// -------------------------------------------------------------- resizing

QUARRY_PUBLIC void* realloc(void* block, size_t bytes) noexcept {
  return quarry::Realloc(block, bytes);
}

QUARRY_PUBLIC void* reallocarray(void* block, size_t count,
                                 size_t bytes_each) noexcept {
  return quarry::Reallocarray(block, count, bytes_each, ByName(realloc));
}

QUARRY_PUBLIC void* reallocf(void* block, size_t bytes) noexcept {
  return quarry::Reallocf(block, bytes, ByName(realloc), ByName(free));
}

// --------------------------------------------------------------- freeing

QUARRY_PUBLIC void free(void* block) noexcept { quarry::Free(block); }

QUARRY_PUBLIC void free_sized(void* block, size_t bytes) noexcept {
  quarry::DeallocateSized(block, bytes);
}

QUARRY_PUBLIC void free_aligned_sized(void* block, size_t alignment,
                                      size_t bytes) noexcept {
  quarry::DeallocateAlignedSized(block, bytes, alignment);
}

// --------------------------------------------------------------- figures

QUARRY_PUBLIC size_t malloc_usable_size(void* block) noexcept {
  return quarry::UsableBytes(block);
}

// arena = uordblks + fordblks is what was mapped for blocks that have no
// mapping of their own; hblkhd is the others.
QUARRY_PUBLIC struct mallinfo2 mallinfo2() noexcept {
  const HeapStatistics s = quarry::GatherStatistics();
  struct mallinfo2 info = {};
  info.uordblks = s.live_small_bytes + s.live_medium_bytes;
  info.fordblks = s.cached_bytes + s.slab_free_bytes + s.arena_free_bytes +
                  s.huge_cached_bytes;
  info.arena = info.uordblks + info.fordblks;
  info.hblks = s.live_huge_blocks;
  info.hblkhd = s.live_huge_bytes;
  info.keepcost = s.arena_free_bytes + s.huge_cached_bytes;
  for (size_t i = 0; i < s.size_classes; ++i) {
    info.ordblks += s.by_class[i].free_blocks;
  }
  return info;
}

// The older form of int fields, each as near to the truth as an int can be.
QUARRY_PUBLIC struct mallinfo mallinfo() noexcept {
  const auto clamped = [](size_t figure) {
    return static_cast<int>(std::min(figure, size_t{INT_MAX}));
  };
  const struct mallinfo2 from = mallinfo2();
  struct mallinfo info = {};
  info.arena = clamped(from.arena);
  info.ordblks = clamped(from.ordblks);
  info.hblks = clamped(from.hblks);
  info.hblkhd = clamped(from.hblkhd);
  info.uordblks = clamped(from.uordblks);
  info.fordblks = clamped(from.fordblks);
  info.keepcost = clamped(from.keepcost);
  return info;
}

QUARRY_PUBLIC int malloc_info(int options, FILE* file) noexcept {
  if (options != 0) return EINVAL;
  // Gathered first: writing to the file may allocate its buffer.
  const HeapStatistics statistics = quarry::GatherStatistics();
  const auto write_to_file = [](void* context, const char* text, size_t bytes) {
    fwrite(text, 1, bytes, static_cast<FILE*>(context));
  };
  quarry::PrintStatisticsXml(statistics, write_to_file, file);
  return 0;
}

QUARRY_PUBLIC void malloc_stats() noexcept {
  quarry::PrintHeapStatistics(STDERR_FILENO);
}

// -------------------------------------------------------------- settings

QUARRY_PUBLIC int malloc_trim(size_t keep_bytes) noexcept {
  return quarry::ReleaseMemory(keep_bytes) != 0 ? 1 : 0;
}

QUARRY_PUBLIC int mallopt(int parameter, int value) noexcept {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  switch (parameter) {
    case M_MMAP_THRESHOLD:
      if (value < 0) return 0;
      quarry::settings.mmap_threshold_bytes.store(static_cast<size_t>(value),
                                                  kRelaxed);
      quarry::settings.mmap_threshold_adapts.store(false, kRelaxed);
      return 1;
    case M_TRIM_THRESHOLD:  // -1 is the largest size_t: never trim.
      if (value < -1) return 0;
      quarry::settings.trim_threshold_bytes.store(static_cast<size_t>(value),
                                                  kRelaxed);
      quarry::settings.mmap_threshold_adapts.store(false, kRelaxed);
      return 1;
    case M_ARENA_MAX:
      if (value < 0) return 0;
      quarry::settings.arenas_max.store(static_cast<size_t>(value), kRelaxed);
      return 1;
    case M_PERTURB:
      quarry::settings.perturb_byte.store(static_cast<uint8_t>(value),
                                          kRelaxed);
      quarry::ApplyPerturbation();
      return 1;
    case M_CHECK_ACTION: {
      // What Quarry always does: a message (1) and abort (2).
      constexpr int kMessageAndAbort = 3;
      return (value & kMessageAndAbort) == kMessageAndAbort ? 1 : 0;
    }
    default:
      return 0;
  }
}

// ----------------------------------------------------------- other names

void cfree(void* block) QUARRY_ALIAS(free);
void* __libc_malloc(size_t bytes) QUARRY_ALIAS(malloc);
void __libc_free(void* block) QUARRY_ALIAS(free);
void* __libc_calloc(size_t count, size_t bytes_each) QUARRY_ALIAS(calloc);
void* __libc_realloc(void* block, size_t bytes) QUARRY_ALIAS(realloc);
void* __libc_memalign(size_t alignment, size_t bytes) QUARRY_ALIAS(memalign);
void* __libc_valloc(size_t bytes) QUARRY_ALIAS(valloc);
void* __libc_pvalloc(size_t bytes) QUARRY_ALIAS(pvalloc);
void* __libc_reallocarray(void* block, size_t count, size_t bytes_each)
    QUARRY_ALIAS(reallocarray);
int __posix_memalign(void** block, size_t alignment, size_t bytes)
    QUARRY_ALIAS(posix_memalign);
struct mallinfo __libc_mallinfo() QUARRY_ALIAS(mallinfo);
int __libc_mallopt(int parameter, int value) QUARRY_ALIAS(mallopt);

}  // extern "C"
