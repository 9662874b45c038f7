#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "alloc/heap.h"
#include "arena/arena.h"
#include "arena/huge.h"
#include "arena/page_source.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/resident_pages.h"
#include "tests/arena/sanitizers.h"
#include "tests/arena/scripted_page_source.h"

namespace quarry {
namespace {

TEST(Reallocate, ReallocationKeepsTheContentFromAnyRoomToAnyOther) {
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

TEST(Reallocate, ReallocationOfASmallBlockKeepsTheContent) {
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
TEST(Reallocate, ReallocationsThatMoveOverflowTheMagazine) {
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

TEST(Reallocate, ReallocationWithinAClassStaysInPlace) {
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

TEST(Reallocate, ReallocationOfAPageRunStaysInPlaceWhereItCan) {
  char* const block = Allocate(kMiB);
  Content::Write(block, 512 * kKiB, 1);
  EXPECT_EQ(Reallocate(block, 512 * kKiB), block);
  EXPECT_EQ(UsableBytes(block), 512 * kKiB);
  // Behind it is what it gave back.
  EXPECT_EQ(Reallocate(block, kMiB), block);
  EXPECT_EQ(UsableBytes(block), kMiB);
  EXPECT_TRUE(Content::IsIntact(block, 512 * kKiB, 1));
  VerifyHeap();
  DeallocateSized(block, kMiB);
}

// A buffer by a guess, cut to what came, time and again.
TEST(Reallocate, APageRunThatIsCutToLessThanHalfServesTheNextRequest) {
  ReleaseMemory(0);
  // The maintenance thread would take what is kept.
  settings.decay_ms = 1000000;
  char* const first = Allocate(kMiB);
  std::array<char*, 18> blocks;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t bytes = (17 + 25 * i) * kKiB;
    char* const block = i == 0 ? first : Allocate(kMiB);
    EXPECT_EQ(block, first);
    Content::Write(block, bytes, i);
    blocks[i] = static_cast<char*>(Reallocate(block, bytes));
    EXPECT_NE(blocks[i], first);
    EXPECT_EQ(UsableBytes(blocks[i]), GoodBytes(bytes));
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t bytes = (17 + 25 * i) * kKiB;
    EXPECT_TRUE(Content::IsIntact(blocks[i], bytes, i));
    DeallocateSized(blocks[i], bytes);
  }
  settings.decay_ms = Settings().decay_ms.load();
  VerifyHeap();
}

// To move it would make resident what was not.
TEST(Reallocate, APageRunThatIsCutWhereLittleWasTouchedStaysInPlace) {
  constexpr size_t kLeft = 400 * kKiB;
  for (size_t touched_bytes = PageBytes(); touched_bytes < kLeft; touched_bytes *= 2) {
    ReleaseMemory(0);
    char* const block = static_cast<char*>(AllocateZeroed(kMiB));
    memset(block, 1, touched_bytes);
    block[kLeft / 2] = 1;
    EXPECT_EQ(Reallocate(block, kLeft), block) << touched_bytes;
    EXPECT_LE(ResidentPages(block, kLeft), touched_bytes / PageBytes() + 1);
    DeallocateSized(block, kLeft);
  }
}

TEST(Reallocate, ABlockThatGrowsAndShrinksInTurnStaysInPlace) {
  constexpr size_t kLong = kMiB;
  constexpr size_t kShort = 300 * kKiB;
  char* block = Allocate(kShort);
  Content::Write(block, kShort, 1);
  block = static_cast<char*>(Reallocate(block, kLong));
  for (int i = 0; i < 10; ++i) {
    memset(block + kShort, 1, kLong - kShort);
    ASSERT_EQ(Reallocate(block, kShort), block);
    ASSERT_EQ(Reallocate(block, kLong), block);
  }
  EXPECT_TRUE(Content::IsIntact(block, kShort, 1));
  // Who has the run next is another.
  memset(block, 2, kLong);
  Deallocate(block);
  char* const next = Allocate(kLong);
  ASSERT_EQ(next, block);
  char* const moved = static_cast<char*>(Reallocate(next, kShort));
  EXPECT_NE(moved, next);
  Deallocate(moved);
  VerifyHeap();
}

// As where a kept run of one of the next sizes serves a request.
TEST(Reallocate, APageRunThatIsALittleTooLargeIsAsAnyOther) {
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

TEST(Reallocate, WhatABlockHasOutgrownIsNotKept) {
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

TEST(Reallocate, FreshPagesThatAGrownBlockIsCopiedToArePopulated) {
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

TEST(Reallocate, APageRunThatGrowsIntoAHugeBlockIsNotCopied) {
  // What is filled and small is: see the next.
  for (const size_t bytes : {4 * kMiB, 16 * kMiB}) {
    const size_t touched_bytes = bytes == 4 * kMiB ? bytes / 4 : bytes;
    for (const size_t more : {2 * bytes, size_t{PTRDIFF_MAX}}) {
      ForgetWhatWasFilled();
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

TEST(Reallocate, AFilledPageRunThatGrowsIntoAHugeBlockIsCopiedToHugePages) {
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

// What the block before left in it is not the program's again: that was seen once.
TEST(Reallocate, APageRunUsedBeforeThatGrowsIsOnHugePagesForWhatWasSeenFilled) {
  ForgetWhatWasFilled();
  char* const filled = Allocate(3 * kMiB);
  memset(filled, 1, 3 * kMiB);
  Deallocate(filled);
  int on_huge_pages = 0;
  std::array<char*, 20> blocks;
  for (char*& block : blocks) {
    block = Allocate(3 * kMiB);
    block[0] = 1;
    block = static_cast<char*>(Reallocate(block, 6 * kMiB));
    on_huge_pages += HugeBlocks::Of(block)->has_huge_pages;
  }
  EXPECT_LE(on_huge_pages, static_cast<int>(FillingHistory::kCreditOfByte) * 3 / 6);
  // Nor are the pages of the run that became the block's seen filled later.
  std::array<char*, 5> fresh;
  for (char*& block : fresh) {
    block = Allocate(6 * kMiB);
    EXPECT_FALSE(HugeBlocks::Of(block)->has_huge_pages);
  }
  for (char* block : fresh) Deallocate(block);
  VerifyHeap();
  for (char* block : blocks) Deallocate(block);
  ForgetWhatWasFilled();
}

TEST(Reallocate, WhatReallocFindsFilledIsOnHugePages) {
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
TEST(Reallocate, APageRunOnHugePagesThatBecomesHugeIsAsItIsFilled) {
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

TEST(Reallocate, ReallocationOfAHugeBlockCopiesNothing) {
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
TEST(Reallocate, AHugeBlockOfWhichAPartWasAdvisedIsReallocatedAsAnyOther) {
  for (const int advice : {MADV_HUGEPAGE, MADV_DONTFORK, MADV_DONTDUMP}) {
    for (const size_t alignment : {size_t{16}, 4 * kMiB}) {
      // A page run does not keep its alignment.
      settings.mmap_threshold_bytes = Settings().mmap_threshold_bytes.load();
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

TEST(Reallocate, WhatIsCopiedOfSuchABlockIsWhatWasTouched) {
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

TEST(Reallocate, AReallocationThatCannotBeLeavesTheBlock) {
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

}  // namespace
}  // namespace quarry
