#include "alloc/large_blocks.h"

#include <cstring>
#include <deque>
#include <vector>

#include "alloc/heap.h"
#include "arena/arena.h"
#include "arena/filling.h"
#include "arena/huge.h"
#include "arena/page_source.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/heap_support.h"

namespace quarry {
namespace {

TEST(LargeBlocks, WhoFillsALargeBlockGetsTheNextOnHugePages) {
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
TEST(LargeBlocks, WhoFilledABlockAndTouchesLittleOfOthersHasFewHugePages) {
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

TEST(LargeBlocks, ReuseOfAFilledBlockUsesUpNothing) {
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
TEST(LargeBlocks, ACallocThatIsNotFilledIsNotClearedAgain) {
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

// The first that is freed raises the threshold over all of them.
TEST(LargeBlocks, BlocksInTurnUseTheirPagesAgainWhenArenasHaveBegunToServeTheirSize) {
  constexpr size_t kBytes = 12 * kMiB;
  constexpr size_t kBlocks = 5;
  ForgetWhatWasFilled();
  const size_t mapped_bytes = OsPages().statistics().mapped_bytes;
  std::deque<char*> ring;
  for (size_t i = 0; i < 6 * kBlocks; ++i) {
    char* const block = Allocate(kBytes);
    ASSERT_NE(block, nullptr);
    EXPECT_GE(UsableBytes(block), kBytes);
    memset(block, 1, kBytes);
    ring.push_back(block);
    if (ring.size() < kBlocks) continue;
    DeallocateSized(ring.front(), kBytes);
    ring.pop_front();
  }
  EXPECT_GT(settings.mmap_threshold_bytes, kBytes);
  // One more, which an arena has mapped in place of the first, by a segment that doubles.
  EXPECT_LE(OsPages().statistics().mapped_bytes,
            mapped_bytes + (kBlocks - 1) * kBytes + 2 * Arena::kLargestSegmentBytes);
  size_t huge_blocks = 0;
  for (char* block : ring) {
    huge_blocks += HugeBlocks::Of(block) != nullptr;
    Deallocate(block);
  }
  EXPECT_GE(huge_blocks, kBlocks - 2);
  VerifyHeap();
  ForgetWhatWasFilled();
}

// Whatever serves: a page run of a step, or a kept mapping of whole pages.
TEST(LargeBlocks, ABlockHasTheGoodSizeAndIsFreedByIt) {
  constexpr size_t kBytes = 12 * kMiB + 1;
  ForgetWhatWasFilled();
  std::vector<char*> blocks;
  for (int i = 0; i < 6; ++i) blocks.push_back(Allocate(kBytes));
  for (int round = 0; round < 3; ++round) {
    for (char*& block : blocks) {
      EXPECT_GE(UsableBytes(block), GoodBytes(kBytes));
      DeallocateSized(block, round == 1 ? kBytes : GoodBytes(kBytes));
    }
    for (char*& block : blocks) block = Allocate(kBytes);
  }
  for (char* block : blocks) Deallocate(block);
  VerifyHeap();
  ForgetWhatWasFilled();
}

}  // namespace
}  // namespace quarry
