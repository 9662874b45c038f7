// The calls whose instructions tools/golden_instructions counts.
//
//   counted [ROUNDS]
//
// Every operation is called from a function of its own, in whose name callgrind
// notes what the call takes. All are of the preloaded library, and in a state
// in which a thread's cache can serve them.

#include <malloc.h>

#include <cstdlib>
#include <new>

#include "tools/benchmarks/support.h"

// What follows a call keeps it from being a jump: no call, to callgrind.
#define COUNTED extern "C" __attribute__((noinline))
#define AFTER_THE_CALL asm volatile("" : : : "memory")

COUNTED void* counted_malloc_32() {
  void* block = std::malloc(32);
  AFTER_THE_CALL;
  return block;
}

COUNTED void* counted_malloc_1024() {
  void* block = std::malloc(1024);
  AFTER_THE_CALL;
  return block;
}

COUNTED void counted_free(void* block) {
  std::free(block);
  AFTER_THE_CALL;
}

COUNTED void* counted_new_32() {
  void* block = ::operator new(32);
  AFTER_THE_CALL;
  return block;
}

COUNTED void counted_delete(void* block) {
  ::operator delete(block);
  AFTER_THE_CALL;
}

COUNTED void counted_sized_delete_32(void* block) {
  ::operator delete(block, size_t{32});
  AFTER_THE_CALL;
}

COUNTED void* counted_calloc_32() {
  void* block = std::calloc(1, 32);
  AFTER_THE_CALL;
  return block;
}

COUNTED void* counted_realloc_in_place(void* block) {
  block = std::realloc(block, 31);
  AFTER_THE_CALL;
  return block;
}

COUNTED void* counted_realloc_that_moves(void* block) {
  block = std::realloc(block, 48);
  AFTER_THE_CALL;
  return block;
}

COUNTED void* counted_aligned_alloc_64() {
  void* block = std::aligned_alloc(64, 64);
  AFTER_THE_CALL;
  return block;
}

COUNTED void counted_usable_size(void* block) {
  malloc_usable_size(block);
  AFTER_THE_CALL;
}

int main(int argc, char** argv) {
  const size_t rounds = bench::Argument(argc, argv, 1, 1000);
  for (size_t i = 0; i < rounds; ++i) {
    void* block = counted_realloc_in_place(counted_malloc_32());
    counted_usable_size(block);
    counted_free(counted_realloc_that_moves(block));
    counted_free(counted_malloc_1024());
    counted_free(counted_calloc_32());
    counted_free(counted_aligned_alloc_64());
    counted_delete(counted_new_32());
    counted_sized_delete_32(counted_new_32());
  }
}
