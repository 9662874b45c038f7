#include "alloc/calls.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <bit>

#include "alloc/options.h"
#include "alloc/statistics.h"
#include "arena/page_source.h"
#include "tcache/thread_life.h"

namespace quarry {
namespace {

constexpr size_t kLargestAlignment = SIZE_MAX / 2 + 1;

// Sets errno where there is no block.
void* OrNoMemory(void* block) {
  if (ABSL_PREDICT_FALSE(block == nullptr)) errno = ENOMEM;
  return block;
}

ABSL_ATTRIBUTE_NOINLINE void* MallocUncommon(size_t bytes) {
  return OrNoMemory(AllocateSlow(bytes));
}

ABSL_ATTRIBUTE_NOINLINE void* CallocUncommon(size_t bytes) {
  return OrNoMemory(AllocateZeroed(bytes));
}

ABSL_ATTRIBUTE_NOINLINE void* MemalignUncommon(size_t alignment,
                                               size_t bytes) {
  if (ABSL_PREDICT_FALSE(alignment > kLargestAlignment)) {
    errno = EINVAL;
    return nullptr;
  }
  return OrNoMemory(AllocateAligned(bytes, std::bit_ceil(alignment)));
}

ABSL_ATTRIBUTE_NOINLINE void* ReallocUncommon(void* block, size_t bytes) {
  return OrNoMemory(Reallocate(block, bytes));
}

// Of the shared library the first constructor of the process, as a rule
// (QUARRY_SHARED_LINKOPTS); in a program preinit.cc comes before. glibc tells both the
// program's arguments and its environment.
__attribute__((constructor)) void StartWithConstructors(int, char**, char** environment) {
  StartProcess(environment);
}

// Here, and not in the table of options: it is the heap's last user that asks
// for the page, and this file is in every program that uses the heap.
__attribute__((destructor)) void PrintStatisticsAtExit() {
  const int file_descriptor = OpenForStatisticsAtExit();
  if (file_descriptor >= 0) PrintHeapStatistics(file_descriptor);
}

}  // namespace

void StartProcess(char** environment) {
  RegisterHandlers();
  LoadOptionsIfAny(environment);
}

void* MallocSlow(size_t bytes) {
  if (void* block = TryTakeAtHand(bytes)) return block;
  return MallocUncommon(bytes);
}

void* MallocAligned8(size_t bytes) {
  return OrNoMemory(AllocateUnaligned8(bytes));
}

void* Calloc(size_t count, size_t bytes_each) {
  size_t bytes;
  if (ABSL_PREDICT_FALSE(__builtin_mul_overflow(count, bytes_each, &bytes))) {
    return OrNoMemory(nullptr);
  }
  if (void* block = TryPopZeroed(bytes)) return block;
  return CallocUncommon(bytes);
}

void* Memalign(size_t alignment, size_t bytes) {
  if (alignment <= kMinAlignmentBytes) return Malloc(bytes);
  if (IsPowerOfTwo(alignment)) {
    if (void* block = TryPopAligned(bytes, alignment)) return block;
  }
  // Buffers for direct I/O, as a rule. What is not small starts on a page.
  if (bytes > kSmallMaxBytes && alignment <= PageBytes()) return MallocSlow(bytes);
  return MemalignUncommon(alignment, bytes);
}

int PosixMemalign(void** block, size_t alignment, size_t bytes) {
  if (!IsPowerOfTwo(alignment) || alignment % sizeof(void*) != 0) {
    return EINVAL;
  }
  void* aligned = Memalign(alignment, bytes);
  if (ABSL_PREDICT_FALSE(aligned == nullptr)) return ENOMEM;
  *block = aligned;
  return 0;
}

void* Valloc(size_t bytes) { return Memalign(PageBytes(), bytes); }

void* Pvalloc(size_t bytes) {
  const size_t page_mask = PageBytes() - 1;
  size_t rounded;
  if (ABSL_PREDICT_FALSE(__builtin_add_overflow(bytes, page_mask, &rounded))) {
    return OrNoMemory(nullptr);
  }
  return Memalign(page_mask + 1, rounded & ~page_mask);
}

void* Realloc(void* block, size_t bytes) {
  if (ABSL_PREDICT_FALSE(block == nullptr)) return Malloc(bytes);
  if (ABSL_PREDICT_FALSE(bytes == 0)) {
    Deallocate(block);
    return nullptr;
  }
  if (StaysInPlace(block, bytes)) return block;
  return ReallocUncommon(block, bytes);
}

void* Reallocarray(void* block, size_t count, size_t bytes_each,
                   ReallocFunction* resize) {
  size_t bytes;
  if (ABSL_PREDICT_FALSE(__builtin_mul_overflow(count, bytes_each, &bytes))) {
    return OrNoMemory(nullptr);
  }
  return resize(block, bytes);
}

void* Reallocf(void* block, size_t bytes, ReallocFunction* resize,
               FreeFunction* release) {
  void* moved = resize(block, bytes);
  // With 0 bytes the block is gone already.
  if (ABSL_PREDICT_FALSE(moved == nullptr && bytes != 0)) release(block);
  return moved;
}

void PrintHeapStatistics(int file_descriptor) {
  PrintStatistics(GatherStatistics(), file_descriptor);
}

}  // namespace quarry
