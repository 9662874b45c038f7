#include "alloc/heap.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "arena/arena.h"
#include "arena/filling.h"
#include "arena/huge.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/size_classes.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/resident_pages.h"
#include "tests/arena/sanitizers.h"
#include "tests/arena/scripted_page_source.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// Before anything is allocated, when the page map is empty.
const bool null_freed_first = (Deallocate(nullptr), DeallocateSized(nullptr, 8),
                               DeallocateAlignedSized(nullptr, 8, 64), true);

// A number that the compiler cannot know.
size_t Opaque(size_t number) {
  asm("" : "+r"(number));
  return number;
}

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

TEST(Heap, ReleaseMemoryCountsPagesBetweenBlocksInUse) {
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

// --- Reallocation. ---

TEST(Heap, ReallocationKeepsTheContentFromAnyRoomToAnyOther) {
  for (const size_t before : kSizes) {
    for (const size_t after : kSizes) {
      if (after == 0) continue;
      SCOPED_TRACE(testing::Message() << before << " to " << after);
      char* block = Allocate(before);
      Content::Write(block, before, before + after);
      block = static_cast<char*>(Reallocate(block, after));
      ASSERT_NE(block, nullptr);
      ASSERT_TRUE(Content::IsIntact(block, before, before + after, after));
      ASSERT_TRUE(IsAligned(block, 16));
      ASSERT_GE(UsableBytes(block), after);
      block[UsableBytes(block) - 1] = 1;
      DeallocateSized(block, after);
    }
  }
  VerifyHeap();
}

TEST(Heap, ReallocationOfASmallBlockKeepsTheContent) {
  for (size_t before = 1; before <= 200; ++before) {
    for (size_t after = 1; after <= 200; ++after) {
      SCOPED_TRACE(testing::Message() << before << " to " << after);
      // The neighbours of where the block goes keep theirs, too.
      char* const low = Allocate(after);
      char* const place = Allocate(after);
      char* const high = Allocate(after);
      Content::Write(low, after, 1);
      Content::Write(high, after, 2);
      Deallocate(place);
      char* block = Allocate(before);
      Content::Write(block, before, before + after);
      block = static_cast<char*>(Reallocate(block, after));
      ASSERT_TRUE(Content::IsIntact(block, before, before + after, after));
      ASSERT_TRUE(Content::IsIntact(low, after, 1));
      ASSERT_TRUE(Content::IsIntact(high, after, 2));
      for (char* p : {low, block, high}) Deallocate(p);
    }
  }
  VerifyHeap();
}

// The old blocks are more than a magazine, its spare and its depot hold.
TEST(Heap, ReallocationsThatMoveOverflowTheMagazine) {
  constexpr size_t kBefore = 32;
  constexpr size_t kAfter = 320;
  const HeapStatistics before = GatherStatistics();
  std::vector<char*> blocks(20000);
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = Allocate(kBefore);
    Content::Write(blocks[i], kBefore, i);
  }
  for (char*& block : blocks) {
    block = static_cast<char*>(Reallocate(block, kAfter));
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    ASSERT_TRUE(Content::IsIntact(blocks[i], kBefore, i));
  }
  const HeapStatistics after = GatherStatistics();
  EXPECT_GT(after.flushes, before.flushes);
  EXPECT_EQ(after.live_bytes, before.live_bytes + blocks.size() * kAfter);
  for (char* block : blocks) Deallocate(block);
  VerifyHeap();
}

TEST(Heap, ReallocationWithinAClassStaysInPlace) {
  for (SizeClass c = kFirstClass; c < kClasses; ++c) {
    char* const block = Allocate(BlockBytes(c));
    const size_t fewest = std::max<size_t>(MinRequestBytes(c), 1);
    for (const size_t bytes : {fewest, BlockBytes(c), fewest}) {
      ASSERT_EQ(Reallocate(block, bytes), block) << bytes;
    }
    char* const moved =
        static_cast<char*>(Reallocate(block, BlockBytes(c) + 1));
    ASSERT_NE(moved, block);
    Deallocate(moved);
  }
}

TEST(Heap, ReallocationOfAPageRunStaysInPlaceWhereItCan) {
  char* const block = Allocate(kMiB);
  Content::Write(block, 96 * kKiB, 1);
  EXPECT_EQ(Reallocate(block, 96 * kKiB), block);
  EXPECT_EQ(UsableBytes(block), 96 * kKiB);
  // Behind it is what it gave back.
  EXPECT_EQ(Reallocate(block, kMiB), block);
  EXPECT_EQ(UsableBytes(block), kMiB);
  EXPECT_TRUE(Content::IsIntact(block, 96 * kKiB, 1));
  VerifyHeap();
  DeallocateSized(block, kMiB);
}

// As where a kept run of one of the next sizes serves a request.
TEST(Heap, APageRunThatIsALittleTooLargeIsAsAnyOther) {
  const size_t kLarger = 20 * PageBytes();
  const size_t kBytes = 16 * PageBytes() + 1;
  for (int way = 0; way < 4; ++way) {
    FlushThread();
    char* const larger = Allocate(kLarger);
    Deallocate(larger);
    char* const block = Allocate(kBytes);
    ASSERT_EQ(block, larger);
    ASSERT_EQ(UsableBytes(block), kLarger);
    ASSERT_EQ(Reallocate(block, kBytes), block);
    ASSERT_EQ(UsableBytes(block), kLarger) << "nothing to give back";
    ASSERT_EQ(Reallocate(block, kLarger), block);
    ASSERT_EQ(Reallocate(block, kBytes + 1), block);
    memset(block, 1, kLarger);
    if (way == 0) Deallocate(block);
    if (way == 1) DeallocateSized(block, kBytes);
    if (way == 2) DeallocateSized(block, kLarger);
    if (way == 3) std::thread([&] { DeallocateSized(block, kBytes); }).join();
    VerifyHeap();
  }
}

TEST(Heap, WhatABlockHasOutgrownIsNotKept) {
  constexpr size_t kBytes = 40 * kKiB;
  FlushThread();
  // Each in the way of the one before.
  std::array<char*, 3> blocks;
  for (char*& block : blocks) block = Allocate(kBytes);
  for (size_t i = 0; i < blocks.size(); ++i) {
    Content::Write(blocks[i], kBytes, i);
    blocks[i] = static_cast<char*>(Reallocate(blocks[i], 3 * kBytes));
    ASSERT_TRUE(Content::IsIntact(blocks[i], kBytes, i));
    EXPECT_EQ(thread_state.cache->CachedRunBytes(), 0u);
  }
  // What becomes shorter than a run is likely to be wanted in that size again.
  blocks[0] = static_cast<char*>(Reallocate(blocks[0], 100));
  EXPECT_GE(thread_state.cache->CachedRunBytes(), 3 * kBytes);
  for (char* block : blocks) Deallocate(block);
  VerifyHeap();
  // In a thread of its own, since one that left the fast path stays there.
  std::thread([] {
    settings.perturb_byte = 0x5a;
    ApplyPerturbation();
    for (size_t bytes = 10 * kKiB; bytes < 2 * kMiB; bytes *= 2) {
      char* block = Allocate(bytes);
      Content::Write(block, bytes, bytes);
      block = static_cast<char*>(Reallocate(block, 4 * bytes));
      ASSERT_TRUE(Content::IsIntact(block, bytes, bytes)) << bytes;
      Deallocate(block);
    }
    settings.perturb_byte = 0;
  }).join();
  VerifyHeap();
}

TEST(Heap, FreshPagesThatAGrownBlockIsCopiedToArePopulated) {
  using Kind = ScriptedPageSource::Kind;
  constexpr size_t kBytes = 100 * kKiB;
  ReleaseMemory(0);
  ScriptedPageSource source;
  os_page_source.Substitute(&source);
  // Each in the way of the one before.
  std::array<char*, 4> blocks;
  for (char*& block : blocks) block = Allocate(kBytes);
  for (char*& block : blocks) memset(block, 1, kBytes);
  const auto grow = [&](size_t i) {
    return blocks[i] = static_cast<char*>(Reallocate(blocks[i], 3 * kBytes));
  };

  // In pieces, and no more than is copied.
  EXPECT_TRUE(AllBytesAre(grow(0), kBytes, 1));
  size_t populated = 0;
  for (const ScriptedPageSource::Call& call : source.calls()) {
    if (call.kind != Kind::kPopulate) continue;
    EXPECT_EQ(call.start, blocks[0] + populated);
    EXPECT_LE(call.bytes, kGranuleBytes);
    populated += call.bytes;
  }
  EXPECT_EQ(populated, MediumBytes(kBytes));
  const size_t calls = source.CountOf(Kind::kPopulate);
  // Not what is resident, nor what is little.
  char* const dirty = blocks[0];
  memset(dirty, 1, 3 * kBytes);
  Deallocate(dirty);
  EXPECT_EQ(grow(1), dirty);
  Deallocate(Reallocate(Allocate(10 * kKiB), kBytes));
  EXPECT_EQ(source.CountOf(Kind::kPopulate), calls);
  for (size_t i = 1; i < blocks.size(); ++i) Deallocate(blocks[i]);
  ReleaseMemory(0);
  os_page_source.Substitute(nullptr);
  VerifyHeap();
}

TEST(Heap, APageRunThatGrowsIntoAHugeBlockIsNotCopied) {
  // What is filled and small is: see the next.
  for (const size_t bytes : {4 * kMiB, 16 * kMiB}) {
    const size_t touched_bytes = bytes == 4 * kMiB ? bytes / 4 : bytes;
    for (const size_t more : {2 * bytes, size_t{PTRDIFF_MAX}}) {
      // Of an arena, however large; where it is, its like is in the way.
      settings.mmap_threshold_bytes = 2 * bytes;
      char* block = Allocate(bytes);
      char* const other = Allocate(bytes);
      settings.mmap_threshold_bytes = Settings().mmap_threshold_bytes.load();
      ASSERT_TRUE(OsPages().PurgeToZero(block, bytes));
      memset(block, 1, touched_bytes);
      char* const moved = static_cast<char*>(Reallocate(block, more));
      EXPECT_EQ(moved != nullptr, more == 2 * bytes);
      // A copy would leave the run's own pages behind.
      EXPECT_EQ(ResidentPages(block, bytes),
                moved != nullptr ? 0 : touched_bytes / PageBytes());
      if (moved != nullptr) block = moved;
      for (size_t i = 0; i < touched_bytes; ++i) ASSERT_EQ(block[i], 1);
      VerifyHeap();
      Deallocate(block);
      Deallocate(other);
    }
  }
}

// Nothing is expected after this, whatever went before.
void ForgetWhatWasFilled() {
  settings.mmap_threshold_bytes = Settings().mmap_threshold_bytes.load();
  ReleaseMemory(0);
  while (filling_history.Expect(FillingHistory::kLeastBytes) == Filling::kFromLowEnd) {
  }
}

TEST(Heap, AFilledPageRunThatGrowsIntoAHugeBlockIsCopiedToHugePages) {
  constexpr size_t kBytes = 4 * kMiB;
  ForgetWhatWasFilled();
  settings.mmap_threshold_bytes = 2 * kBytes;
  char* const block = Allocate(kBytes);
  char* const other = Allocate(kBytes);
  settings.mmap_threshold_bytes = Settings().mmap_threshold_bytes.load();
  memset(block, 1, kBytes);
  char* const moved = static_cast<char*>(Reallocate(block, 3 * kBytes));
  ASSERT_NE(moved, nullptr);
  EXPECT_TRUE(HugeBlocks::Of(moved)->has_huge_pages);
  EXPECT_EQ(ResidentPages(block, kBytes), kBytes / PageBytes()) << "for the next";
  for (size_t i = 0; i < kBytes; ++i) ASSERT_EQ(moved[i], 1);
  EXPECT_EQ(moved[kBytes], 0);
  VerifyHeap();
  Deallocate(moved);
  Deallocate(other);
}

TEST(Heap, WhoFillsALargeBlockGetsTheNextOnHugePages) {
  constexpr size_t kBytes = 4 * kMiB;
  const auto has_huge_pages = [](const void* p) {
    const auto* const run = Arena::RunOf(p);
    return run != nullptr ? run->has_huge_pages : HugeBlocks::Of(p)->has_huge_pages;
  };
  for (const bool is_run : {false, true}) {
    for (const bool is_filled : {false, true}) {
      ForgetWhatWasFilled();
      settings.mmap_threshold_bytes = is_run ? 8 * kBytes : kBytes;
      char* const first = Allocate(kBytes);
      // Nothing by itself: where all is huge, one touch would be many.
      OsPages().KeepSmallPages(first, kBytes);
      memset(first, 1, is_filled ? kBytes : kBytes / 8);
      char* const next = Allocate(4 * kBytes);
      EXPECT_EQ(has_huge_pages(next), is_filled);
      char* const one_more = Allocate(kBytes);
      EXPECT_FALSE(has_huge_pages(one_more)) << "enough was expected of the first";
      VerifyHeap();
      for (char* p : {first, next, one_more}) Deallocate(p);
      VerifyHeap();
    }
  }
  ForgetWhatWasFilled();
}

// Each block on huge pages of which only one byte is touched looks as if it were filled.
TEST(Heap, WhoFilledABlockAndTouchesLittleOfOthersHasFewHugePages) {
  constexpr size_t kBytes = 8 * kMiB;
  for (const bool frees : {false, true}) {
    ForgetWhatWasFilled();
    char* const filled = Allocate(kBytes);
    memset(filled, 1, kBytes);
    std::vector<char*> blocks;
    size_t on_huge_pages = 0;
    for (int i = 0; i < 20; ++i) {
      // Larger than what is kept dirty, or of an arena.
      char* const block = Allocate(frees ? 65 * kMiB + i * kMiB : kBytes);
      on_huge_pages += HugeBlocks::Of(block)->has_huge_pages;
      for (size_t at = 0; at < kBytes; at += kMiB) block[at] = 1;
      if (frees) {
        Deallocate(block);
      } else {
        blocks.push_back(block);
      }
    }
    EXPECT_LE(on_huge_pages, frees ? 0u : FillingHistory::kCreditOfByte);
    if (frees) {
      // As much as the next, and so the one after it.
      char* const large = Allocate(20 * kMiB);
      memset(large, 1, 20 * kMiB);
      for (int i = 0; i < 3; ++i) {
        char* const block = Allocate(66 * kMiB);
        EXPECT_EQ(HugeBlocks::Of(block)->has_huge_pages, i == 0);
        for (size_t at = 0; at < kBytes; at += kMiB) block[at] = 1;
        Deallocate(block);
      }
      Deallocate(large);
    }
    for (char* block : blocks) Deallocate(block);
    Deallocate(filled);
    VerifyHeap();
  }
  ForgetWhatWasFilled();
}

// Of a block that was filled its pages are kept after this, and no other.
void KeepAFilledBlock(size_t bytes) {
  ForgetWhatWasFilled();
  char* const block = Allocate(bytes);
  memset(block, 1, bytes);
  Deallocate(block);
}

TEST(Heap, ReuseOfAFilledBlockUsesUpNothing) {
  constexpr size_t kBytes = 40 * kMiB;
  KeepAFilledBlock(kBytes);
  char* block;
  for (size_t i = 0; i <= FillingHistory::kCreditOfByte; ++i) {
    block = Allocate(kBytes);
    EXPECT_TRUE(HugeBlocks::Of(block)->has_stale_pages);
    Deallocate(block);
  }
  ReleaseMemory(0);
  block = Allocate(kBytes);
  EXPECT_TRUE(HugeBlocks::Of(block)->has_huge_pages);
  Deallocate(block);
  ForgetWhatWasFilled();
}

// What is kept of a block that was filled is not cleared for each calloc that follows.
TEST(Heap, ACallocThatIsNotFilledIsNotClearedAgain) {
  constexpr size_t kBytes = 40 * kMiB;
  KeepAFilledBlock(kBytes);
  for (int i = 0; i < 3; ++i) {
    char* const block = static_cast<char*>(AllocateZeroed(kBytes));
    EXPECT_TRUE(std::all_of(block, block + kMiB, [](char byte) { return byte == 0; }));
    EXPECT_EQ(HugeBlocks::Of(block)->zeroed, i > 0);
    Deallocate(block);
  }
  ForgetWhatWasFilled();
}

TEST(Heap, WhatReallocFindsFilledIsOnHugePages) {
  for (const bool is_filled : {false, true}) {
    ForgetWhatWasFilled();
    char* block = Allocate(8 * kMiB);
    memset(block, 1, is_filled ? 8 * kMiB : kMiB);
    block = static_cast<char*>(Reallocate(block, 12 * kMiB));
    EXPECT_EQ(HugeBlocks::Of(block)->has_huge_pages, is_filled);
    block = static_cast<char*>(Reallocate(block, 40 * kMiB));
    EXPECT_EQ(HugeBlocks::Of(block)->has_huge_pages, is_filled);
    EXPECT_EQ(block[kMiB - 1], 1);
    EXPECT_EQ(block[39 * kMiB], 0);
    Deallocate(block);
  }
  ForgetWhatWasFilled();
}

// The advice goes with the pages.
TEST(Heap, APageRunOnHugePagesThatBecomesHugeIsAsItIsFilled) {
  constexpr size_t kBytes = 12 * kMiB;
  for (const bool is_filled : {false, true}) {
    ForgetWhatWasFilled();
    settings.mmap_threshold_bytes = 2 * kBytes;
    char* const filled = Allocate(kBytes);
    memset(filled, 1, kBytes);
    char* block = Allocate(kBytes);
    char* const in_the_way = Allocate(kBytes);
    ASSERT_TRUE(Arena::RunOf(block)->has_huge_pages);
    memset(block, 1, is_filled ? kBytes : 1);
    block = static_cast<char*>(Reallocate(block, 3 * kBytes));
    EXPECT_EQ(HugeBlocks::Of(block)->has_huge_pages, is_filled);
    EXPECT_EQ(block[0], 1);
    EXPECT_EQ(block[3 * kBytes - 1], 0);
    for (char* p : {filled, block, in_the_way}) Deallocate(p);
    VerifyHeap();
  }
  ForgetWhatWasFilled();
}

TEST(Heap, ReallocationOfAHugeBlockCopiesNothing) {
  char* block = Allocate(64 * kMiB);
  char* const other = Allocate(64 * kMiB);  // In the way, if anything is.
  block[0] = 1;
  block[64 * kMiB - 1] = 2;
  block = static_cast<char*>(Reallocate(block, 512 * kMiB));
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(block[0], 1);
  EXPECT_EQ(block[64 * kMiB - 1], 2);
  EXPECT_EQ(block[512 * kMiB - 1], 0);
  EXPECT_EQ(Reallocate(block, 16 * kMiB), block);
  EXPECT_EQ(UsableBytes(block), 16 * kMiB);
  // A size that varies about the threshold does not move the block each time.
  EXPECT_EQ(Reallocate(block, 3 * kMiB), block);
  EXPECT_EQ(UsableBytes(block), 3 * kMiB);
  EXPECT_EQ(block[0], 1);
  VerifyHeap();
  DeallocateSized(block, 3 * kMiB);
  DeallocateSized(other, 64 * kMiB);
}

// To the system such a block is several mappings, which it does not move.
TEST(Heap, AHugeBlockOfWhichAPartWasAdvisedIsReallocatedAsAnyOther) {
  for (const int advice : {MADV_HUGEPAGE, MADV_DONTFORK, MADV_DONTDUMP}) {
    for (const size_t alignment : {size_t{16}, 4 * kMiB}) {
      char* block = static_cast<char*>(AllocateAligned(16 * kMiB, alignment));
      Content::Write(block, 16 * kMiB, 1);
      const size_t mapped_bytes = GatherStatistics().mapped_bytes;
      ASSERT_EQ(madvise(block + kMiB, 4 * kMiB, advice), 0);
      block = static_cast<char*>(Reallocate(block, 48 * kMiB));
      ASSERT_NE(block, nullptr);
      EXPECT_TRUE(Content::IsIntact(block, 16 * kMiB, 1));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % alignment, 0u);
      ASSERT_EQ(madvise(block + kMiB, 4 * kMiB, advice), 0);
      EXPECT_EQ(Reallocate(block, 8 * kMiB), block);
      Deallocate(block);
      ReleaseMemory(0);
      EXPECT_LT(GatherStatistics().mapped_bytes, mapped_bytes);
    }
  }
  VerifyHeap();
}

TEST(Heap, WhatIsCopiedOfSuchABlockIsWhatWasTouched) {
  if (kUnderAsan || kUnderTsan) GTEST_SKIP() << "they touch more";
  char* block = Allocate(256 * kMiB);
  block[200 * kMiB] = 1;
  ASSERT_EQ(madvise(block + kMiB, PageBytes(), MADV_DONTFORK), 0);
  block = static_cast<char*>(Reallocate(block, 512 * kMiB));
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(block[200 * kMiB], 1);
  EXPECT_EQ(block[100 * kMiB], 0);
  EXPECT_LT(ResidentPages(block, 512 * kMiB) * PageBytes(), 8 * kMiB);
  Deallocate(block);
}

TEST(Heap, AReallocationThatCannotBeLeavesTheBlock) {
  for (const size_t bytes : kSizes) {
    char* const block = Allocate(bytes);
    Content::Write(block, bytes, bytes);
    EXPECT_EQ(Reallocate(block, Opaque(~size_t{0})), nullptr);
    EXPECT_EQ(Reallocate(block, Opaque(size_t{PTRDIFF_MAX} + 1)), nullptr);
    EXPECT_EQ(Reallocate(block, Opaque(size_t{1} << 60)), nullptr);
    EXPECT_TRUE(Content::IsIntact(block, bytes, bytes));
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

// --- Giving back. ---

TEST(Heap, APageRunGetsWhatFullMagazinesOfColdClassesKept) {
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
TEST(Heap, ASlabGetsWhatFullMagazinesOfLargeBlocksKept) {
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

TEST(Heap, ReleasedMemoryServesAgain) {
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

TEST(Heap, TheThreadMayFlushAtAnyTime) {
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
