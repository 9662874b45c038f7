#include "alloc/heap.h"

#include <cerrno>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "arena/page_source.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/size_classes.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// Before anything is allocated, when the page map is empty.
const bool null_freed_first = (Deallocate(nullptr), DeallocateSized(nullptr, 8),
                               DeallocateAlignedSized(nullptr, 8, 64), true);

void ExpectGoodBlock(size_t bytes) {
  const size_t good = GoodBytes(bytes);
  char* const block = Allocate(bytes);
  ASSERT_NE(block, nullptr) << bytes;
  ASSERT_TRUE(IsAligned(block, 16)) << bytes;
  ASSERT_GE(good, bytes);
  ASSERT_EQ(GoodBytes(good), good) << bytes;
  // A huge block may be larger than it must be: kept mappings serve again.
  const size_t usable = UsableBytes(block);
  ASSERT_GE(usable, good) << bytes;
  ASSERT_LE(usable, bytes >= 4 * kMiB         ? good + good / 8
                    : bytes > kSmallMaxBytes ? MostMediumBytes(bytes)
                                             : good)
      << bytes;
  if (bytes <= kSmallMaxBytes) {
    ASSERT_EQ(good, BlockBytes(ClassOf(bytes)));
  }
  block[0] = 1;
  block[usable - 1] = 2;
  switch (bytes % 3) {
    case 0:
      Deallocate(block);
      break;
    case 1:
      DeallocateSized(block, bytes);
      break;
    default:
      DeallocateSized(block, usable);
  }
}

TEST(Heap, ServesEverySmallSize) {
  for (size_t bytes = 0; bytes <= kSmallMaxBytes + 2 * PageBytes(); ++bytes) {
    ASSERT_NO_FATAL_FAILURE(ExpectGoodBlock(bytes));
  }
  VerifyHeap();
}

TEST(Heap, ServesEveryNumberOfPagesUpToBeyondTheThreshold) {
  const size_t most = 4 * kMiB + 16 * PageBytes();
  for (size_t bytes = kSmallMaxBytes; bytes <= most; bytes += PageBytes()) {
    for (const size_t nearby : {bytes - 1, bytes, bytes + 1}) {
      ASSERT_NO_FATAL_FAILURE(ExpectGoodBlock(nearby));
    }
  }
  for (size_t bytes = 8 * kMiB; bytes <= 1024 * kMiB; bytes *= 2) {
    for (const size_t nearby : {bytes - 1, bytes, bytes + 1}) {
      ASSERT_NO_FATAL_FAILURE(ExpectGoodBlock(nearby));
    }
  }
  VerifyHeap();
}

TEST(Heap, BlocksOfNoBytesAreDistinct) {
  std::set<char*> blocks;
  for (int i = 0; i < 5000; ++i) blocks.insert(Allocate(0));
  EXPECT_EQ(blocks.size(), 5000u);
  for (char* block : blocks) DeallocateSized(block, 0);
}

TEST(Heap, AnAlignmentOf8MakesSmallBlocksSmaller) {
  std::set<char*> blocks;
  for (size_t i = 0; i < 20000; ++i) {
    const size_t bytes = i % 12;
    char* const block = static_cast<char*>(AllocateUnaligned8(bytes));
    ASSERT_TRUE(IsAligned(block, bytes <= 8 ? 8 : 16));
    ASSERT_EQ(UsableBytes(block), bytes <= 8 ? 8u : 16u);
    memset(block, static_cast<int>(i), bytes);
    blocks.insert(block);
  }
  EXPECT_EQ(blocks.size(), 20000u);
  VerifyHeap();
  size_t way = 0;
  for (char* block : blocks) {
    const size_t usable = UsableBytes(block);
    switch (++way % 3) {
      case 0:
        Deallocate(block);
        break;
      case 1:
        DeallocateSized(block, usable);
        break;
      default:
        block = static_cast<char*>(Reallocate(block, 8));
        ASSERT_TRUE(IsAligned(block, 16));
        DeallocateSized(block, 8);
    }
  }
  VerifyHeap();
}

TEST(Heap, NullIsNoBlock) {
  Deallocate(nullptr);
  DeallocateSized(nullptr, 0);
  DeallocateSized(nullptr, 100);
  DeallocateSized(nullptr, 100 * kMiB);
  DeallocateAlignedSized(nullptr, 0, 64);
  DeallocateAlignedSized(nullptr, 100, 64 * kMiB);
  EXPECT_EQ(UsableBytes(nullptr), 0u);
}

TEST(Heap, MoreThanPtrdiffMaxIsNoMemory) {
  for (const size_t number :
       {size_t{PTRDIFF_MAX} + 1, ~size_t{0} - 4096, ~size_t{0}}) {
    const size_t bytes = Opaque(number);
    EXPECT_EQ(Allocate(bytes), nullptr);
    EXPECT_EQ(AllocateZeroed(bytes), nullptr);
    EXPECT_EQ(AllocateUnaligned8(bytes), nullptr);
    EXPECT_EQ(AllocateAligned(bytes, 16), nullptr);
    EXPECT_EQ(AllocateAligned(bytes, 64 * kMiB), nullptr);
    EXPECT_GE(GoodBytes(bytes), bytes);
  }
  for (const size_t bytes : {size_t{0}, size_t{100}, size_t{PTRDIFF_MAX}}) {
    EXPECT_EQ(AllocateAligned(bytes, size_t{1} << 63), nullptr);
    EXPECT_EQ(AllocateAligned(bytes, size_t{1} << 62), nullptr);
  }
  VerifyHeap();
}

// --- Alignment. ---

constexpr int kWaysToFree = 6;

void FreeInWay(int way, char* block, size_t bytes, size_t alignment) {
  const char first = bytes > 0 ? block[0] : 0;
  switch (way) {
    case 0:
      Deallocate(block);
      break;
    case 1:
      DeallocateAlignedSized(block, bytes, alignment);
      break;
    case 2:  // Any size up to what there is.
      DeallocateAlignedSized(block, UsableBytes(block), alignment);
      break;
    case 3:
      block = static_cast<char*>(Reallocate(block, 100));
      ASSERT_NE(block, nullptr);
      ASSERT_TRUE(bytes == 0 || block[0] == first);
      DeallocateSized(block, 100);
      break;
    case 4: {
      const size_t more = bytes + 40000;
      block = static_cast<char*>(Reallocate(block, more));
      ASSERT_NE(block, nullptr);
      ASSERT_TRUE(bytes == 0 || block[0] == first);
      ASSERT_GE(UsableBytes(block), more);
      block[more - 1] = 1;
      DeallocateSized(block, more);
      break;
    }
    case 5:
      std::thread([&] {
        DeallocateAlignedSized(block, bytes, alignment);
      }).join();
      break;
  }
}

TEST(Heap, NullIsFreedBeforeAnythingIsAllocated) {
  EXPECT_TRUE(null_freed_first);
}

TEST(Heap, EveryAlignmentWithEverySizeAndEveryWayToFree) {
  for (size_t alignment = 1; alignment <= 1024 * kMiB; alignment *= 2) {
    for (const size_t bytes :
         {size_t{0}, size_t{1}, size_t{24}, size_t{100}, size_t{3000},
          size_t{4097}, size_t{4700}, size_t{6200}, kSmallMaxBytes,
          size_t{40000}, alignment / 2, alignment - 1, alignment, alignment + 1,
          5 * kMiB}) {
      for (int way = 0; way < kWaysToFree; ++way) {
        SCOPED_TRACE(testing::Message() << bytes << " bytes at " << alignment
                                        << ", freed in way " << way);
        char* const block =
            static_cast<char*>(AllocateAligned(bytes, alignment));
        ASSERT_NE(block, nullptr);
        ASSERT_TRUE(IsAligned(block, alignment));
        const size_t usable = UsableBytes(block);
        ASSERT_GE(usable, bytes);
        if (alignment > kSmallMaxBytes) {
          // No more than the needed pages.
          const size_t needed = RoundUp(std::max<size_t>(bytes, 1),
                                        PageBytes());
          ASSERT_LE(usable, needed + needed / 8);
        }
        if (bytes > 0) block[0] = block[bytes - 1] = 7;
        ASSERT_NO_FATAL_FAILURE(FreeInWay(way, block, bytes, alignment));
      }
    }
    VerifyHeap();
  }
  ReleaseMemory(0);
}

TEST(Heap, ManyAlignedBlocksOfOneKindDoNotOverlap) {
  for (size_t alignment = 32; alignment <= 256 * kKiB; alignment *= 2) {
    std::vector<char*> blocks;
    for (size_t i = 0; i < 40; ++i) {
      const size_t bytes = alignment / 2 + i;
      blocks.push_back(static_cast<char*>(AllocateAligned(bytes, alignment)));
      ASSERT_TRUE(IsAligned(blocks[i], alignment));
      Content::Write(blocks[i], bytes, i);
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      const size_t bytes = alignment / 2 + i;
      ASSERT_TRUE(Content::IsIntact(blocks[i], bytes, i)) << alignment;
      DeallocateAlignedSized(blocks[i], bytes, alignment);
    }
  }
  VerifyHeap();
}

// --- Zero. ---

TEST(Heap, ZeroedBlocksAreZeroWhereDirtyOnesWere) {
  for (const size_t bytes : kSizes) {
    SCOPED_TRACE(bytes);
    std::vector<char*> blocks;
    const size_t count = bytes > kMiB ? 3 : 20;
    for (size_t i = 0; i < count; ++i) {
      blocks.push_back(Allocate(bytes));
      memset(blocks[i], 0xff, UsableBytes(blocks[i]));
    }
    for (char* block : blocks) Deallocate(block);
    blocks.clear();
    for (size_t i = 0; i < count; ++i) {
      blocks.push_back(static_cast<char*>(AllocateZeroed(bytes)));
      ASSERT_TRUE(AllBytesAre(blocks[i], bytes, 0));
    }
    for (char* block : blocks) Deallocate(block);
  }
}

TEST(Heap, ZeroedBlocksAreZeroWhereverTheyAreCutFrom) {
  std::mt19937_64 random(TestSeed());
  std::vector<char*> blocks;
  for (size_t step = 0; step < Steps(3000); ++step) {
    const size_t bytes = random() % (size_t{1} << (5 + random() % 19));
    char* block = random() % 2 == 0
                      ? Allocate(bytes)
                      : static_cast<char*>(AllocateZeroed(bytes));
    Deallocate(block);
    block = static_cast<char*>(AllocateZeroed(bytes));
    ASSERT_TRUE(AllBytesAre(block, bytes, 0)) << bytes;
    if (random() % 4 == 0) {
      block = static_cast<char*>(
          Reallocate(block, 1 + random() % (2 * bytes + 1)));
    }
    memset(block, 0xff, UsableBytes(block));
    blocks.push_back(block);
    if (blocks.size() > 20) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      Deallocate(blocks.back());
      blocks.pop_back();
    }
    if (random() % 500 == 0) ReleaseMemory(0);
  }
  for (char* block : blocks) Deallocate(block);
  VerifyHeap();
}

// Of a page run, which a slab's block of that size is not.
TEST(Heap, BlocksThatMustBeZeroOrGrowArePageRunsAboveSixteenKibibytes) {
  for (const size_t bytes : {kSlabsOnlyMaxBytes + 1, size_t{21000}, size_t{21504},
                             size_t{30000}, size_t{33000}, kSmallMaxBytes}) {
    SCOPED_TRACE(bytes);
    for (const bool is_zeroed : {true, false}) {
      // As large as was asked for, and as large as GoodBytes() told.
      for (const size_t freed_as : {bytes, GoodBytes(bytes)}) {
        char* const block = static_cast<char*>(
            is_zeroed ? AllocateZeroed(bytes) : Reallocate(Allocate(10'000), bytes));
        ASSERT_NE(block, nullptr);
        EXPECT_EQ(PageMap::TagOf(block), kRunTag);
        EXPECT_GE(UsableBytes(block), bytes);
        EXPECT_LE(UsableBytes(block), MostMediumBytes(bytes));
        block[bytes - 1] = 1;
        DeallocateSized(block, freed_as);
      }
    }
    char* const block = Allocate(bytes);
    EXPECT_EQ(UsableBytes(block), BlockBytes(ClassOf(bytes)));
    EXPECT_NE(PageMap::TagOf(block), kRunTag);
    DeallocateSized(block, bytes);
  }
  VerifyHeap();
}

// --- errno. ---

TEST(Heap, NoCallChangesErrno) {
  errno = 1234;
  for (const size_t bytes : kSizes) {
    char* block = Allocate(bytes);
    block = static_cast<char*>(Reallocate(block, bytes + 1));
    Deallocate(block);
    DeallocateSized(AllocateZeroed(bytes), bytes);
    DeallocateAlignedSized(AllocateAligned(bytes, kMiB), bytes, kMiB);
    EXPECT_EQ(errno, 1234) << bytes;
  }
  EXPECT_EQ(Allocate(Opaque(size_t{1} << 60)), nullptr);
  FlushThread();
  ReleaseMemory(0);
  VerifyHeap();
  EXPECT_EQ(errno, 1234);
}

}  // namespace
}  // namespace quarry
