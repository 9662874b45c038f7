// The heap above its soft limit.
#include <vector>

#include "alloc/heap.h"
#include "arena/limits.h"
#include "arena/page_source.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/heap_support.h"

namespace quarry {
namespace {

// A program's own cache, which it gives up when it is told to.
struct ProgramCache {
  std::vector<char*> blocks;
  int told = 0;
  size_t mapped_bytes = 0;
  size_t soft_bytes = 0;

  static void Tell(void* context, size_t mapped_bytes, size_t soft_bytes) {
    ProgramCache* const cache = static_cast<ProgramCache*>(context);
    ++cache->told;
    cache->mapped_bytes = mapped_bytes;
    cache->soft_bytes = soft_bytes;
    // A callback may allocate, also from the system, and may free.
    Deallocate(Allocate(100));
    Deallocate(Allocate(10 * kMiB));
    while (!cache->blocks.empty()) {
      Deallocate(cache->blocks.back());
      cache->blocks.pop_back();
    }
  }
};

class HeapLimits : public testing::Test {
 protected:
  HeapLimits() {
    settings.mmap_threshold_bytes = 4 * kMiB;
    ReleaseMemory(0);
    base_bytes_ = memory_limits.mapped_bytes();
  }
  ~HeapLimits() override {
    SetMemoryLimits(0, 0);
    SetPressureCallback(nullptr, nullptr);
  }

  // Above what is mapped by now.
  void SetSoftLimit(size_t bytes) {
    SetMemoryLimits(base_bytes_ + bytes, 0);
    SetPressureCallback(ProgramCache::Tell, &cache_);
  }

  ProgramCache cache_;
  size_t base_bytes_;
};

TEST_F(HeapLimits, CountWhatIsMapped) {
  EXPECT_EQ(memory_limits.mapped_bytes(), OsPages().statistics().mapped_bytes);
}

TEST_F(HeapLimits, TheProgramIsToldWhenItPassesTheSoftLimit) {
  SetSoftLimit(64 * kMiB);
  cache_.blocks.push_back(Allocate(40 * kMiB));
  EXPECT_EQ(cache_.told, 0);
  char* const block = Allocate(40 * kMiB);
  EXPECT_EQ(cache_.told, 1);
  EXPECT_GT(cache_.mapped_bytes, cache_.soft_bytes);
  EXPECT_EQ(cache_.soft_bytes, base_bytes_ + 64 * kMiB);
  EXPECT_TRUE(cache_.blocks.empty());
  EXPECT_FALSE(AboveSoftLimit());
  Deallocate(block);
  VerifyHeap();
}

TEST_F(HeapLimits, EveryRoomPassesIt) {
  for (const size_t bytes : {size_t{1000}, 100 * kKiB, 5 * kMiB}) {
    ReleaseMemory(0);
    base_bytes_ = memory_limits.mapped_bytes();
    SetSoftLimit(64 * kMiB);
    cache_.told = 0;
    std::vector<char*> blocks;
    for (size_t total = 0; total < 200 * kMiB; total += bytes) {
      blocks.push_back(Allocate(bytes));
    }
    EXPECT_GE(cache_.told, 1) << bytes;
    EXPECT_LE(cache_.told, 40) << bytes;
    for (char* block : blocks) Deallocate(block);
    VerifyHeap();
  }
}

TEST_F(HeapLimits, WhatIsFreeGoesBackBeforeTheProgramIsTold) {
  SetSoftLimit(64 * kMiB);
  Deallocate(Allocate(20 * kMiB));
  settings.mmap_threshold_bytes = 4 * kMiB;
  Deallocate(Allocate(16 * kMiB));
  char* const block = Allocate(40 * kMiB);
  EXPECT_EQ(cache_.told, 0);
  EXPECT_FALSE(AboveSoftLimit());
  Deallocate(block);
}

TEST_F(HeapLimits, GrowthInPlacePassesItToo) {
  SetSoftLimit(64 * kMiB);
  char* block = Allocate(40 * kMiB);
  block = static_cast<char*>(Reallocate(block, 80 * kMiB));
  EXPECT_EQ(cache_.told, 1);
  Deallocate(block);
}

TEST_F(HeapLimits, ExpansionInPlacePassesItToo) {
  char* const block = Allocate(100 * kMiB);
  ASSERT_EQ(Reallocate(block, 40 * kMiB), block);
  SetSoftLimit(64 * kMiB);
  const size_t expanded_bytes = TryExpand(block, 100 * kMiB, 100 * kMiB);
  EXPECT_EQ(cache_.told, expanded_bytes != 0);
  Deallocate(block);
  if (expanded_bytes == 0) GTEST_SKIP() << "something else is where it was";
}

// Elsewhere it would be there twice for a moment.
TEST_F(HeapLimits, WhatBecomesMuchShorterNearALimitStaysWhereItIs) {
  char* const block = Allocate(kMiB);
  memset(block, 1, kMiB);
  SetSoftLimit(20 * kMiB);
  EXPECT_EQ(Reallocate(block, 300 * kKiB), block);
  SetMemoryLimits(0, memory_limits.mapped_bytes() + 20 * kMiB);
  EXPECT_EQ(Reallocate(block, 130 * kKiB), block);
  SetMemoryLimits(0, memory_limits.mapped_bytes() + 200 * kMiB);
  char* const moved = static_cast<char*>(Reallocate(block, 60 * kKiB));
  EXPECT_NE(moved, block);
  EXPECT_EQ(cache_.told, 0);
  SetMemoryLimits(0, 0);
  Deallocate(moved);
}

// --- What grows beyond a few MiB. ---

class HeapGrowth : public HeapLimits {};

// A hole between page runs in use is too small for a slab, but not for a request.
TEST_F(HeapLimits, WhereThereIsNoRoomForASlabAPageRunServes) {
  constexpr size_t kBytes = 20'000;
  SetMemoryLimits(0, base_bytes_ + 16 * kMiB);
  std::vector<char*> blocks;
  while (void* const block = AllocateZeroed(kBytes)) {
    blocks.push_back(static_cast<char*>(block));
  }
  ASSERT_GT(blocks.size(), 12 * kMiB / kBytes);
  for (size_t i = 0; i < blocks.size(); i += 2) Deallocate(blocks[i]);
  for (size_t i = 0; i < blocks.size(); i += 2) {
    const bool is_aligned = i % 4 == 0;
    blocks[i] = is_aligned ? static_cast<char*>(AllocateAligned(kBytes, PageBytes()))
                           : Allocate(kBytes);
    ASSERT_NE(blocks[i], nullptr) << i;
    blocks[i][kBytes - 1] = 1;
  }
  VerifyHeap();
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i % 4 == 0) {
      DeallocateAlignedSized(blocks[i], kBytes, PageBytes());
    } else {
      DeallocateSized(blocks[i], kBytes);
    }
  }
}

TEST_F(HeapGrowth, ABlockThatGrowsBecomesHugeWhateverTheThreshold) {
  settings.mmap_threshold_bytes = 32 * kMiB;
  char* block = Allocate(3 * kMiB);
  char* const obstacle = Allocate(3 * kMiB);
  Content::Write(block, 3 * kMiB, 1);
  const HeapStatistics before = GatherStatistics();
  block = static_cast<char*>(Reallocate(block, 6 * kMiB));
  EXPECT_TRUE(Content::IsIntact(block, 3 * kMiB, 1));
  EXPECT_EQ(GatherStatistics().live_huge_blocks, before.live_huge_blocks + 1);
  for (const size_t bytes : {7 * kMiB, 20 * kMiB, 31 * kMiB, 3 * kMiB}) {
    block = static_cast<char*>(Reallocate(block, bytes));
    EXPECT_TRUE(Content::IsIntact(block, 3 * kMiB, 1));
    EXPECT_EQ(UsableBytes(block), bytes);
    EXPECT_EQ(GatherStatistics().live_huge_blocks,
              before.live_huge_blocks + 1);
  }
  block = static_cast<char*>(Reallocate(block, kMiB));
  EXPECT_TRUE(Content::IsIntact(block, 3 * kMiB, 1, kMiB));
  EXPECT_EQ(GatherStatistics().live_huge_blocks, before.live_huge_blocks);
  DeallocateSized(block, kMiB);
  Deallocate(obstacle);
  VerifyHeap();
}

TEST_F(HeapGrowth, AFreedSizeIsServedByAnArenaFromThenOn) {
  Deallocate(Allocate(10 * kMiB));
  const size_t huge_blocks_before = GatherStatistics().live_huge_blocks;
  char* const block = Allocate(10 * kMiB);
  EXPECT_EQ(GatherStatistics().live_huge_blocks, huge_blocks_before);
  Deallocate(block);
}

TEST_F(HeapGrowth, AReusedMappingIsZeroForCalloc) {
  settings.mmap_threshold_adapts = false;
  char* const block = Allocate(9 * kMiB);
  memset(block, 1, 9 * kMiB);
  Deallocate(block);
  char* const zeroed = static_cast<char*>(AllocateZeroed(9 * kMiB));
  EXPECT_EQ(zeroed, block);
  EXPECT_TRUE(AllBytesAre(zeroed, 9 * kMiB, 0));
  Deallocate(zeroed);
  settings.mmap_threshold_adapts = true;
}

TEST_F(HeapGrowth, AReusedRunIsZeroForCalloc) {
  settings.mmap_threshold_bytes = 32 * kMiB;
  for (const size_t touched : {size_t{1}, 5 * kMiB + 1}) {
    char* const block = Allocate(5 * kMiB + 1);
    memset(block, 1, touched);
    Deallocate(block);
    char* const zeroed = static_cast<char*>(AllocateZeroed(5 * kMiB + 1));
    EXPECT_TRUE(AllBytesAre(zeroed, 5 * kMiB + 1, 0));
    Deallocate(zeroed);
  }
}

}  // namespace
}  // namespace quarry
