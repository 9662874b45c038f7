// What the calls of malloc's family mean, over the heap: errno, overflow, the
// rounding of alignments and the special cases of zero and null.
//
// The prefixed calls (quarry.cc) and libc's names (libc.cc) are both thin over
// these, so that they cannot differ. Each function is documented where it is
// public: quarry.h.
//
// Thread-safety: any number of threads at once.
// Errors: null with errno ENOMEM, but where quarry.h says otherwise.
// Cost: Malloc() and Free() put the heap's fast path into their caller; the
//   rest are calls.
#ifndef QUARRY_ALLOC_CALLS_H_
#define QUARRY_ALLOC_CALLS_H_

#include <stddef.h>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "alloc/heap.h"

namespace quarry {

// What may not wait for the first allocation, with the environment, which libc may not know
// yet, or nullptr. All else waits, so that a program without an allocation, as many that
// shells run are, does not pay for a heap. Once or more often.
void StartProcess(char** environment);

// Malloc() where the fast path has no block, or was not asked.
ABSL_ATTRIBUTE_NOINLINE void* MallocSlow(size_t bytes);

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* Malloc(size_t bytes) {
  void* block = TryPop(bytes);
  if (ABSL_PREDICT_TRUE(block != nullptr)) return block;
  return MallocSlow(bytes);
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void Free(void* block) {
  Deallocate(block);
}

void* MallocAligned8(size_t bytes);
void* Calloc(size_t count, size_t bytes_each);
void* Memalign(size_t alignment, size_t bytes);
int PosixMemalign(void** block, size_t alignment, size_t bytes);
void* Valloc(size_t bytes);
void* Pvalloc(size_t bytes);

void* Realloc(void* block, size_t bytes);
// By `resize`, which is Realloc() or does as that, and `release`.
using ReallocFunction = void*(void* block, size_t bytes);
using FreeFunction = void(void* block);
void* Reallocarray(void* block, size_t count, size_t bytes_each,
                   ReallocFunction* resize);
void* Reallocf(void* block, size_t bytes, ReallocFunction* resize,
               FreeFunction* release);

// Prints the page of statistics of the heap as it is.
void PrintHeapStatistics(int file_descriptor);

}  // namespace quarry

#endif  // QUARRY_ALLOC_CALLS_H_
