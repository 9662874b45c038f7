#include "tools/benchmarks/fast_path/limit.h"

namespace {

struct Block {
  Block* next;
  char rest[56];
};

constexpr size_t kBlocks = 1024;

thread_local Block pool[kBlocks];
thread_local Block* top = nullptr;

__attribute__((noinline)) void* FillAndPop() {
  for (size_t i = 1; i < kBlocks; ++i) LimitPush(&pool[i]);
  return &pool[0];
}

}  // namespace

extern "C" void* LimitPop(size_t) {
  Block* block = top;
  if (__builtin_expect(block == nullptr, false)) return FillAndPop();
  top = block->next;
  return block;
}

extern "C" void LimitPush(void* pushed) {
  Block* block = static_cast<Block*>(pushed);
  block->next = top;
  top = block;
}
