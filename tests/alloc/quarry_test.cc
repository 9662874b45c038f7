#include "alloc/quarry.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/malloc_contract.h"
#include "tests/alloc/statistics_now.h"

namespace quarry {
namespace {

size_t UsableSize(void* block) { return quarry_malloc_usable_size(block); }

constexpr Surface kPrefixed = {
    .name = "Prefixed",
    .malloc = quarry_malloc,
    .free = quarry_free,
    .calloc = quarry_calloc,
    .realloc = quarry_realloc,
    .reallocarray = quarry_reallocarray,
    .reallocf = quarry_reallocf,
    .memalign = quarry_memalign,
    .aligned_alloc = quarry_aligned_alloc,
    .posix_memalign = quarry_posix_memalign,
    .valloc = quarry_valloc,
    .pvalloc = quarry_pvalloc,
    .usable_size = UsableSize,
    .free_sized = quarry_free_sized,
    .free_aligned_sized = quarry_free_aligned_sized,
};

INSTANTIATE_TEST_SUITE_P(Quarry, MallocContract, testing::Values(kPrefixed),
                         testing::PrintToStringParamName());

// The figures are exact only while no other thread runs.
const bool no_thread = (settings.maintenance = false, true);

// What memalign() makes of an alignment, its sized free makes of it too.
TEST(Quarry, AlignmentsThatAreNoPowersOfTwoCountAsTheNextOne) {
  for (const size_t alignment : {size_t{0}, size_t{3}, size_t{24}, size_t{100},
                                 size_t{5000}}) {
    for (const size_t bytes : {0, 1, 100, 1000, 12000, 20000}) {
      void* const p = quarry_memalign(alignment, bytes);
      ASSERT_NE(p, nullptr);
      quarry_free_aligned_sized(p, alignment, bytes);
    }
  }
}

TEST(Quarry, BlocksAlignedTo8SaveWhatTheAlignmentCosts) {
  std::vector<void*> blocks;
  for (int i = 0; i < 1000; ++i) {
    blocks.push_back(quarry_malloc_aligned8(8));
    ASSERT_NE(blocks.back(), nullptr);
    EXPECT_TRUE(IsAligned(blocks.back(), 8));
    memset(blocks.back(), i, 8);
  }
  EXPECT_EQ(quarry_malloc_usable_size(blocks[0]), 8u);
  for (void* block : blocks) quarry_free(block);
  errno = 0;
  EXPECT_EQ(quarry_malloc_aligned8(Opaque(SIZE_MAX)), nullptr);
  EXPECT_EQ(errno, ENOMEM);
}

// By whichever thread, and when more are freed than will be wanted soon.
TEST(Quarry, BlocksAlignedTo8HaveASizedFree) {
  constexpr size_t kBlocks = 300000;
  for (const bool is_remote : {false, true}) {
    std::vector<void*> blocks;
    for (size_t i = 0; i < kBlocks; ++i) blocks.push_back(quarry_malloc_aligned8(8));
    const auto free_all = [&] {
      for (size_t i = 0; i < kBlocks; ++i) {
        if (i % 2 == 0) {
          quarry_free_aligned_sized(blocks[i], 8, 1 + i % 8);
        } else {
          quarry_free_sized(blocks[i], 1 + i % 8);
        }
      }
    };
    if (is_remote) {
      std::thread(free_all).join();
    } else {
      free_all();
    }
  }
  quarry_verify();
}

TEST(QuarryDeathTest, AnAlignedSizedFreeOfTheWrongSizeIsReported) {
  void* const p = quarry_malloc_aligned8(8);
  void* const q = quarry_aligned_alloc(8, 100);
  const auto in_another_thread = [](void* block, size_t alignment, size_t bytes) {
    std::thread([=] { quarry_free_aligned_sized(block, alignment, bytes); }).join();
  };
  EXPECT_DEATH(in_another_thread(p, 8, 9), "sized free of .* as 9 bytes, but its block has 8");
  EXPECT_DEATH(in_another_thread(p, 16, 8), "sized free of .* as 8 bytes, but its block has 8");
  EXPECT_DEATH(in_another_thread(q, 8, 8), "sized free of .* as 8 bytes");
  quarry_free(p);
  quarry_free(q);
}

TEST(Quarry, TheGoodSizeIsWhatMallocGives) {
  for (size_t bytes = 0; bytes < 100000; bytes += bytes < 2000 ? 1 : 509) {
    void* block = quarry_malloc(bytes);
    const size_t good = quarry_good_size(bytes);
    EXPECT_EQ(quarry_malloc_usable_size(block), good) << bytes;
    EXPECT_GE(good, bytes);
    EXPECT_EQ(quarry_good_size(good), good);
    quarry_free(block);
  }
  EXPECT_EQ(quarry_good_size(Opaque(SIZE_MAX)), 0u);
  EXPECT_EQ(quarry_good_size(Opaque(size_t{PTRDIFF_MAX} + 1)), 0u);
  EXPECT_EQ(quarry_good_size(Opaque(size_t{PTRDIFF_MAX})), 0u) << "rounded up to pages";
}

TEST(Quarry, AllocateAtLeastTellsAllTheBytesThereAre) {
  for (const size_t bytes : {0, 1, 30, 1000, 40000, 5000000}) {
    const quarry_allocation_t first = quarry_allocate_at_least(bytes);
    ASSERT_NE(first.block, nullptr);
    EXPECT_GE(first.bytes, bytes);
    EXPECT_EQ(first.bytes, quarry_malloc_usable_size(first.block));
    memset(first.block, 1, first.bytes);
    quarry_free_sized(first.block, first.bytes);
    const quarry_allocation_t second = quarry_allocate_at_least(bytes);
    quarry_free_sized(second.block, bytes);
  }
  errno = 0;
  const quarry_allocation_t none = quarry_allocate_at_least(Opaque(SIZE_MAX));
  EXPECT_EQ(none.block, nullptr);
  EXPECT_EQ(none.bytes, 0u);
  EXPECT_EQ(errno, ENOMEM);
}

TEST(Quarry, StatisticsAddUpAndFollowTheProgram) {
  const quarry_statistics_t before = Statistics();
  ExpectBalanced(before);

  void* small = quarry_malloc(100);
  void* medium = quarry_malloc(200000);
  void* huge = quarry_malloc(100 << 20);
  const quarry_statistics_t during = Statistics();
  ExpectBalanced(during);
  EXPECT_GE(during.live_small_bytes, before.live_small_bytes + 100);
  EXPECT_GE(during.live_medium_bytes, before.live_medium_bytes + 200000);
  EXPECT_GE(during.live_huge_bytes, before.live_huge_bytes + (100 << 20));
  EXPECT_EQ(during.live_huge_blocks, before.live_huge_blocks + 1);
  EXPECT_GT(during.os_map_calls, before.os_map_calls);

  quarry_free(small);
  quarry_free(medium);
  quarry_free(huge);
  const quarry_statistics_t after = Statistics();
  ExpectBalanced(after);
  EXPECT_EQ(after.live_bytes, before.live_bytes);
  EXPECT_EQ(after.live_huge_blocks, before.live_huge_blocks);
  EXPECT_GE(after.peak_mapped_bytes, during.mapped_bytes);
}

TEST(Quarry, StatisticsKnowTheirEdition) {
  struct {
    quarry_statistics_t known;
    size_t later[4];
  } longer;
  memset(&longer, 0xff, sizeof(longer));
  longer.known.size = sizeof(longer);
  ASSERT_EQ(quarry_statistics(&longer.known), 0);
  EXPECT_EQ(longer.known.size, sizeof(longer));
  EXPECT_NE(longer.known.mapped_bytes, 0u);
  EXPECT_TRUE(AllBytesAre(longer.later, sizeof(longer.later), 0));

  // A program of the first edition gets what it knows.
  constexpr size_t kFirstBytes = offsetof(quarry_statistics_t, mappings);
  quarry_statistics_t first;
  memset(&first, 0xff, sizeof(first));
  first.size = kFirstBytes;
  ASSERT_EQ(quarry_statistics(&first), 0);
  EXPECT_EQ(first.size, kFirstBytes);
  EXPECT_NE(first.mapped_bytes, 0u);
  EXPECT_NE(first.os_map_calls, SIZE_MAX);
  EXPECT_TRUE(
      AllBytesAre(&first.mappings, sizeof(first) - kFirstBytes, 0xff));

  quarry_statistics_t shorter = {};
  shorter.size = kFirstBytes - 1;
  EXPECT_EQ(quarry_statistics(&shorter), EINVAL);
  EXPECT_EQ(shorter.mapped_bytes, 0u);
}

TEST(Quarry, StatisticsTellWhatMayGoBack) {
  quarry_release_memory(0);
  EXPECT_EQ(Statistics().arena_dirty_bytes, 0u);
  // Larger than the runs that a thread keeps for itself.
  char* medium = static_cast<char*>(quarry_malloc(3 << 20));
  memset(medium, 1, 3 << 20);
  void* huge = quarry_malloc(100 << 20);
  const quarry_statistics_t before = Statistics();
  EXPECT_EQ(before.mappings, before.segments + before.live_huge_blocks);
  quarry_free(medium);
  EXPECT_GE(Statistics().arena_dirty_bytes, size_t{3} << 20);
  quarry_free(huge);
  quarry_release_memory(0);
  EXPECT_LT(Statistics().mappings, before.mappings);
  EXPECT_EQ(Statistics().arena_dirty_bytes, 0u);
}

TEST(Quarry, LimitsAreSetAndTold) {
  EXPECT_EQ(quarry_set_memory_limit(size_t{1} << 40, size_t{2} << 40), 0);
  EXPECT_EQ(Statistics().soft_limit_bytes, size_t{1} << 40);
  EXPECT_EQ(Statistics().hard_limit_bytes, size_t{2} << 40);
  EXPECT_EQ(quarry_set_memory_limit(2, 1), EINVAL);
  EXPECT_EQ(Statistics().soft_limit_bytes, size_t{1} << 40);
  EXPECT_EQ(quarry_set_memory_limit(size_t{1} << 40, 0), 0);
  EXPECT_EQ(Statistics().hard_limit_bytes, 0u);
  EXPECT_EQ(quarry_set_memory_limit(0, 0), 0);
  EXPECT_EQ(Statistics().soft_limit_bytes, 0u);
}

TEST(Quarry, SmallBlocksHaveWhatTheyHave) {
  void* block = quarry_malloc(100);
  const size_t usable = quarry_malloc_usable_size(block);
  EXPECT_EQ(quarry_try_expand(block, 0, 0), usable);
  EXPECT_EQ(quarry_try_expand(block, usable, usable * 2), usable);
  errno = 77;
  EXPECT_EQ(quarry_try_expand(block, usable + 1, usable * 2), 0u);
  EXPECT_EQ(quarry_try_expand(block, 2, 1), 0u);
  EXPECT_EQ(quarry_try_expand(nullptr, 1, 2), 0u);
  EXPECT_EQ(quarry_try_expand(block, SIZE_MAX, SIZE_MAX), 0u);
  EXPECT_EQ(errno, 77);
  EXPECT_EQ(quarry_malloc_usable_size(block), usable);
  quarry_free_sized(block, 100);
}

TEST(Quarry, ABlockGrowsWhereItIs) {
  for (const size_t bytes : {size_t{100} << 10, size_t{8} << 20}) {
    SCOPED_TRACE(bytes);
    char* block = static_cast<char*>(quarry_malloc(bytes));
    memset(block, 7, bytes);
    // No shorter than it is.
    EXPECT_EQ(quarry_try_expand(block, 1, bytes / 2),
              quarry_malloc_usable_size(block));
    EXPECT_EQ(quarry_try_expand(block, bytes, bytes),
              quarry_malloc_usable_size(block));
    // More than there ever is, but no less than it has already.
    EXPECT_EQ(quarry_try_expand(block, size_t{1} << 46, SIZE_MAX), 0u);
    const size_t grown = quarry_try_expand(block, bytes + 1, bytes + 65536);
    if (grown != 0) {
      EXPECT_GT(grown, bytes);
      EXPECT_EQ(grown, quarry_malloc_usable_size(block));
      memset(block + bytes, 7, grown - bytes);
    }
    EXPECT_TRUE(AllBytesAre(block, bytes, 7));
    ExpectBalanced(Statistics());
    quarry_verify();
    quarry_free_sized(block, grown != 0 ? grown : bytes);
  }
}

TEST(Quarry, ThereIsRoomToGrowAtTheEndOfASegment) {
  quarry_release_memory(0);
  char* block = static_cast<char*>(quarry_malloc(100000));
  size_t bytes = quarry_malloc_usable_size(block);
  // Several pages that nothing else takes lie behind it, sooner or later.
  std::vector<void*> others;
  for (int i = 0; i < 100; ++i) {
    const size_t grown = quarry_try_expand(block, bytes + 1, bytes + 8192);
    if (grown != 0) {
      EXPECT_LE(grown, bytes + 8192 + 4096);
      bytes = grown;
      break;
    }
    others.push_back(block);
    block = static_cast<char*>(quarry_malloc(100000));
  }
  EXPECT_GT(bytes, 100000u + 4096);
  EXPECT_EQ(quarry_malloc_usable_size(block), bytes);
  quarry_free_sized(block, bytes);
  for (void* other : others) quarry_free(other);
}

TEST(Quarry, SizeClassesAreToldSmallestFirst) {
  std::vector<void*> blocks;
  for (int i = 0; i < 100; ++i) blocks.push_back(quarry_malloc(48));
  const size_t count = quarry_size_class_statistics(nullptr, 0);
  ASSERT_GT(count, 10u);
  std::vector<quarry_size_class_statistics_t> classes(count + 1);
  classes[count].block_bytes = 7;
  EXPECT_EQ(quarry_size_class_statistics(classes.data(), count), count);
  EXPECT_EQ(classes[count].block_bytes, 7u);
  size_t live_in_48 = 0;
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) {
      EXPECT_LT(classes[i - 1].block_bytes, classes[i].block_bytes);
    }
    if (classes[i].block_bytes == 48) live_in_48 = classes[i].live_blocks;
  }
  EXPECT_GE(live_in_48, 100u);
  for (void* block : blocks) quarry_free(block);
}

TEST(Quarry, ReleasedMemoryIsNoLongerMappedOrKept) {
  std::vector<void*> blocks;
  for (int i = 0; i < 20000; ++i) {
    blocks.push_back(quarry_malloc(1000));
    memset(blocks.back(), 1, 1000);
  }
  for (void* block : blocks) quarry_free(block);
  EXPECT_GT(quarry_release_memory(0), 10u << 20);
  ExpectBalanced(Statistics());
  void* block = quarry_calloc(1, 1000);
  EXPECT_TRUE(AllBytesAre(block, 1000, 0));
  quarry_free(block);
}

TEST(Quarry, AThreadMayFlushAtAnyTime) {
  std::thread([] {
    quarry_thread_flush();
    void* block = quarry_malloc(100);
    quarry_thread_flush();
    quarry_free(block);
    quarry_thread_flush();
    quarry_free(quarry_malloc(100));
  }).join();
  quarry_verify();
}

TEST(Quarry, ThePageOfStatisticsGoesWhereItIsSent) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  quarry_statistics_print(ends[1]);
  close(ends[1]);
  std::string page(100, '\0');
  page.resize(static_cast<size_t>(read(ends[0], page.data(), page.size())));
  close(ends[0]);
  EXPECT_EQ(page.find("quarry: memory of process "), 0u) << page;
}

TEST(Quarry, AllCallsAcceptEachOthersBlocks) {
  quarry_free(quarry_realloc(quarry_malloc_aligned8(24), 100));
  quarry_free(quarry_realloc(quarry_memalign(256, 24), 100));
  quarry_free(quarry_reallocarray(quarry_calloc(3, 7), 10, 10));
  quarry_free_sized(quarry_realloc(quarry_valloc(1), 100), 100);
  quarry_verify();
}

}  // namespace
}  // namespace quarry
