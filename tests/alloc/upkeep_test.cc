#include "alloc/upkeep.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "alloc/heap.h"
#include "arena/arena.h"
#include "arena/page_source.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/thread_cache.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

TEST(Upkeep, ReleaseMemoryCountsPagesBetweenBlocksInUse) {
  ReleaseMemory(0);
  constexpr size_t kBlocks = 200;
  const size_t bytes = PageBytes();
  std::vector<char*> blocks(kBlocks);
  for (char*& block : blocks) {
    block = static_cast<char*>(AllocateAligned(bytes, bytes));
    memset(block, 1, bytes);
  }
  for (size_t i = 0; i < kBlocks; ++i) {
    if (i % 8 != 0) Deallocate(blocks[i]);
  }
  EXPECT_GE(ReleaseMemory(0), kBlocks * 3 / 4 * bytes);
  EXPECT_EQ(blocks[1][0], 0) << "given back";
  for (size_t i = 0; i < kBlocks; i += 8) {
    EXPECT_EQ(blocks[i][bytes - 1], 1);
    Deallocate(blocks[i]);
  }
}

// As free runs of an arena do that keeps none.
TEST(Upkeep, ReleaseMemoryCountsWhatGoesWhileTheThreadIsFlushed) {
  settings.decay_ms = 0;
  ReleaseMemory(0);
  // As many as the thread keeps of them when they are freed.
  std::vector<char*> blocks(50);
  for (char*& block : blocks) {
    block = static_cast<char*>(Allocate(40000));
    memset(block, 1, 40000);
  }
  for (char* block : blocks) Deallocate(block);
  EXPECT_GE(ReleaseMemory(0), 25 * size_t{40000});
  EXPECT_EQ(ReleaseMemory(0), 0u);
  settings.decay_ms = Settings().decay_ms.load();
}

TEST(Upkeep, APageRunGetsWhatFullMagazinesOfColdClassesKept) {
  std::mt19937_64 random(TestSeed());
  // What is free and dirty would serve first.
  Deallocate(Allocate(1));
  ReleaseMemory(0);
  Arena& arena = *thread_state.cache->arena();
  std::vector<void*> blocks;
  for (size_t bytes = 0; bytes < 16 * kMiB; bytes += 64) {
    blocks.push_back(Allocate(64));
  }
  const size_t most_bytes = arena.statistics().in_use_bytes;
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (void* p : blocks) Deallocate(p);
  blocks.clear();
  constexpr size_t kRunBytes = 80 * kKiB;
  for (size_t bytes = 0; bytes < 12 * kMiB; bytes += kRunBytes) {
    blocks.push_back(Allocate(kRunBytes));
  }
  EXPECT_LE(arena.statistics().in_use_bytes, most_bytes);
  VerifyHeap();
  for (void* p : blocks) Deallocate(p);
}

// What a thread keeps of blocks of some KiB, too.
TEST(Upkeep, ASlabGetsWhatFullMagazinesOfLargeBlocksKept) {
  Deallocate(Allocate(1));
  ReleaseMemory(0);
  Arena& arena = *thread_state.cache->arena();
  std::vector<void*> blocks;
  for (size_t bytes = 0; bytes < 3 * kMiB; bytes += 10 * kKiB) {
    blocks.push_back(Allocate(10 * kKiB));
  }
  const size_t most_bytes = arena.statistics().in_use_bytes;
  for (void* p : blocks) Deallocate(p);
  EXPECT_GT(arena.statistics().in_use_bytes, most_bytes / 2) << "none is kept";
  blocks.clear();
  for (size_t bytes = 0; bytes < 2 * kMiB; bytes += 64) blocks.push_back(Allocate(64));
  EXPECT_LE(arena.statistics().in_use_bytes, most_bytes);
  VerifyHeap();
  for (void* p : blocks) Deallocate(p);
}

TEST(Upkeep, ReleasedMemoryServesAgain) {
  std::vector<char*> blocks;
  for (size_t i = 0; i < 20000; ++i) {
    blocks.push_back(Allocate(1000));
    memset(blocks.back(), 1, 1000);
  }
  for (char* block : blocks) Deallocate(block);
  EXPECT_GE(ReleaseMemory(0), 16 * kMiB);
  EXPECT_EQ(ReleaseMemory(0), 0u);
  VerifyHeap();
  char* const block = static_cast<char*>(AllocateZeroed(kMiB));
  EXPECT_TRUE(AllBytesAre(block, kMiB, 0));
  Deallocate(block);
}

TEST(Upkeep, TheThreadMayFlushAtAnyTime) {
  std::thread([] {
    FlushThread();
    char* const block = Allocate(100);
    FlushThread();
    VerifyHeap();
    Deallocate(block);
    FlushThread();
    FlushThread();
    Deallocate(Allocate(100));
  }).join();
  VerifyHeap();
}

}  // namespace
}  // namespace quarry
