#include "arena/segment.h"

#include <csignal>
#include <vector>

#include "arena/metadata.h"
#include "arena/run.h"
#include "gtest/gtest.h"
#include "tests/arena/resident_pages.h"
#include "tests/arena/scripted_page_source.h"

namespace quarry {
namespace {

// Inside a fixture, Run is a member of testing::Test.
using PageRun = Run;

constexpr uint32_t kPages = 300;

class SegmentTest : public testing::Test {
 protected:
  SegmentTest() {
    start_ = static_cast<char*>(source_.Map(kPages * PageBytes(), 1 << 16));
    segment_ = Segment::Make(metadata_, nullptr, start_, kPages);
  }
  ~SegmentTest() override {
    Segment::Discard(metadata_, segment_);
    source_.Unmap(start_, kPages * PageBytes());
    EXPECT_EQ(metadata_.in_use_bytes(), 0u);
  }

  char* PageAt(uint32_t page) { return start_ + page * PageBytes(); }

  // Pages are numbered here from the start of the mapping.
  uint32_t Number(uint32_t page) { return segment_->PageOf(PageAt(page)); }

  void MakeRun(PageRun* run, uint32_t first, uint32_t pages) {
    run->segment = segment_;
    run->start = PageAt(first);
    run->pages = pages;
    segment_->SetTags(run);
  }

  ScriptedPageSource source_;
  MetadataPool metadata_{source_};
  char* start_;
  Segment* segment_;
};

using SegmentDeathTest = SegmentTest;

TEST_F(SegmentTest, StartsWithoutRunsAndClean) {
  EXPECT_EQ(segment_->start(), start_);
  EXPECT_EQ(segment_->pages(), kPages);
  EXPECT_EQ(segment_->bytes(), kPages * PageBytes());
  EXPECT_EQ(segment_->first_page(), Number(0));
  EXPECT_EQ(segment_->end_page(), Number(0) + kPages);
  for (uint32_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(segment_->TagAt(Number(i)), nullptr);
  }
  EXPECT_EQ(segment_->CountDirty(Number(0), kPages), 0u);
  EXPECT_TRUE(segment_->AreZero(Number(0), kPages));
}

TEST_F(SegmentTest, KnowsThePageOfAnAddress) {
  const uint32_t first = segment_->first_page();
  EXPECT_EQ(segment_->PageOf(start_), first);
  EXPECT_EQ(segment_->PageOf(PageAt(1) - 1), first);
  EXPECT_EQ(segment_->PageOf(PageAt(1)), first + 1);
  EXPECT_EQ(segment_->PageOf(PageAt(kPages) - 1), first + kPages - 1);
  EXPECT_EQ(segment_->AddressOf(first + 7), PageAt(7));
}

TEST_F(SegmentTest, ARunKnowsItsExtent) {
  PageRun run;
  MakeRun(&run, 2, 3);
  EXPECT_EQ(run.bytes(), 3 * PageBytes());
  EXPECT_EQ(run.end(), PageAt(5));
  EXPECT_EQ(run.arena(), nullptr);
}

TEST_F(SegmentTest, FindsNeighbours) {
  PageRun first, second, third;
  MakeRun(&first, 0, 4);
  MakeRun(&second, 4, 1);
  MakeRun(&third, 5, kPages - 5);
  segment_->Verify();
  EXPECT_EQ(segment_->Before(&first), nullptr);
  EXPECT_EQ(segment_->After(&first), &second);
  EXPECT_EQ(segment_->Before(&second), &first);
  EXPECT_EQ(segment_->After(&second), &third);
  EXPECT_EQ(segment_->Before(&third), &second);
  EXPECT_EQ(segment_->After(&third), nullptr);
}

TEST_F(SegmentTest, MovesTheEndOfARunAndLeavesItsFirstTag) {
  PageRun run;
  MakeRun(&run, 0, 1);
  for (uint32_t pages : {5u, 2u, 1u, 3u, kPages}) {
    segment_->MoveEnd(&run, pages);
    EXPECT_EQ(run.pages, pages);
    for (uint32_t i = 0; i < kPages; ++i) {
      ASSERT_EQ(segment_->TagAt(Number(i)),
                i == 0 || i == pages - 1 ? &run : nullptr);
    }
  }
  segment_->Verify();
}

// Against two bools for each page, at all places around the ends of words.
TEST_F(SegmentTest, KnowsTheStateOfEachPage) {
  std::vector<bool> dirty(kPages), unknown(kPages);
  const auto check = [&] {
    for (uint32_t first = 0; first < kPages; first += 13) {
      uint32_t count = 0, first_dirty = kPages, last_dirty = kPages;
      bool zero = true;
      for (uint32_t pages = 0; first + pages < kPages; ++pages) {
        const uint32_t start = Number(first);
        ASSERT_EQ(segment_->CountDirty(start, pages), count);
        ASSERT_EQ(segment_->AreZero(start, pages), zero);
        if (count > 0) {
          ASSERT_EQ(segment_->FirstDirty(start), Number(first_dirty));
          ASSERT_EQ(segment_->LastDirty(start, pages), Number(last_dirty));
        }
        const uint32_t page = first + pages;
        ASSERT_EQ(segment_->IsDirty(Number(page)), dirty[page]);
        count += dirty[page];
        zero &= !unknown[page];
        if (dirty[page]) last_dirty = page;
        if (dirty[page] && first_dirty == kPages) first_dirty = page;
      }
    }
  };
  const auto free = [&](uint32_t first, uint32_t pages) {
    segment_->SetDirty(Number(first), pages);
    for (uint32_t i = 0; i < pages; ++i) {
      dirty[first + i] = unknown[first + i] = true;
    }
    check();
  };
  const auto purge = [&](uint32_t first, uint32_t pages, bool zero) {
    segment_->SetPurged(Number(first), pages, zero);
    for (uint32_t i = 0; i < pages; ++i) {
      dirty[first + i] = false;
      if (zero) unknown[first + i] = false;
    }
    check();
  };
  free(0, 1);
  free(63, 1);
  free(64, 64);
  free(130, 150);
  purge(190, 3, /*zero=*/true);
  purge(200, 70, /*zero=*/false);
  purge(0, 64, /*zero=*/true);
  free(kPages - 1, 1);
  purge(220, 10, /*zero=*/true);
  free(0, kPages);
  purge(1, kPages - 2, /*zero=*/false);
  free(100, 3);
  purge(0, kPages, /*zero=*/true);
}

TEST_F(SegmentTest, IsExtendedByMappingsOnBothSides) {
  const uint32_t granule = (1 << 16) / PageBytes();
  const uint32_t first = segment_->first_page();
  // Neither a gap, nor an overlap, nor one on the other side of the address.
  EXPECT_FALSE(segment_->TryExtend(PageAt(kPages + 1), granule));
  EXPECT_FALSE(segment_->TryExtend(PageAt(kPages - 1), granule));
  EXPECT_FALSE(segment_->TryExtend(PageAt(0) - PageBytes(), granule));
  EXPECT_FALSE(segment_->TryExtend(PageAt(0), granule));
  EXPECT_EQ(segment_->pages(), kPages);
  ASSERT_TRUE(segment_->TryExtend(PageAt(kPages), granule));
  EXPECT_EQ(segment_->pages(), kPages + granule);
  EXPECT_EQ(segment_->start(), start_);
  ASSERT_TRUE(segment_->TryExtend(PageAt(0) - granule * PageBytes(), granule));
  EXPECT_EQ(segment_->start(), PageAt(0) - granule * PageBytes());
  EXPECT_EQ(segment_->pages(), kPages + 2 * granule);
  EXPECT_EQ(segment_->PageOf(PageAt(0)), first);

  PageRun across;
  across.segment = segment_;
  across.start = segment_->start();
  across.pages = segment_->pages();
  segment_->SetTags(&across);
  segment_->Verify();
  segment_->ClearTags(&across);
}

TEST_F(SegmentTest, IsNotExtendedOutOfReach) {
  const uint32_t pages = kPages / 2;
  uint32_t below = 0, above = 0;
  while (segment_->TryExtend(segment_->start() - pages * PageBytes(), pages)) {
    ++below;
  }
  while (segment_->TryExtend(segment_->start() + segment_->bytes(), pages)) {
    ++above;
  }
  EXPECT_GE(below, 4u);
  EXPECT_GE(above, 1u);
  EXPECT_LE(segment_->pages(), Segment::kReachFactor * kPages + 64);
}

TEST_F(SegmentTest, ATrimmedEndIsForgottenAndMayComeBack) {
  segment_->SetDirty(Number(0), kPages);
  segment_->Trim(Number(0), 100);
  EXPECT_EQ(segment_->start(), PageAt(100));
  segment_->Trim(Number(250), kPages - 250);
  EXPECT_EQ(segment_->pages(), 150u);
  PageRun run;
  MakeRun(&run, 100, 150);
  segment_->Verify();
  EXPECT_EQ(segment_->Before(&run), nullptr);
  EXPECT_EQ(segment_->After(&run), nullptr);
  ASSERT_TRUE(segment_->TryExtend(PageAt(0), 100));
  ASSERT_TRUE(segment_->TryExtend(PageAt(250), kPages - 250));
  EXPECT_EQ(segment_->CountDirty(Number(0), kPages), 150u);
}

TEST_F(SegmentTest, WhatWasMadeResidentIsDirtyAndZeroUntilItIsUsed) {
  segment_->SetResident(Number(10), 100);
  EXPECT_EQ(segment_->CountDirty(Number(0), kPages), 100u);
  EXPECT_TRUE(segment_->AreZero(Number(0), kPages));
  segment_->SetDirty(Number(20), 5);
  EXPECT_EQ(segment_->CountDirty(Number(0), kPages), 100u);
  EXPECT_FALSE(segment_->AreZero(Number(24), 1));
  EXPECT_TRUE(segment_->AreZero(Number(25), 85));
  segment_->SetPurged(Number(20), 70, /*zero=*/false);
  EXPECT_EQ(segment_->CountDirty(Number(0), kPages), 30u);
  EXPECT_FALSE(segment_->AreZero(Number(20), 5));
  EXPECT_TRUE(segment_->AreZero(Number(25), 85));
  segment_->SetPurged(Number(0), kPages, /*zero=*/true);
  EXPECT_EQ(segment_->CountDirty(Number(0), kPages), 0u);
  EXPECT_TRUE(segment_->AreZero(Number(0), kPages));
}

TEST_F(SegmentTest, IsRefusedWithoutMetadata) {
  source_.RefuseKind(ScriptedPageSource::Kind::kMap);
  constexpr uint32_t kManyPages = 1 << 20;
  EXPECT_EQ(Segment::Make(metadata_, nullptr, start_, kManyPages), nullptr);
}

TEST_F(SegmentTest, TheRecordOfALargeSegmentIsHardlyTouched) {
  constexpr uint32_t kManyPages = 1 << 20;
  Segment* const large = Segment::Make(metadata_, nullptr, start_, kManyPages);
  ASSERT_NE(large, nullptr);
  large->SetDirty(large->first_page(), 16);
  char* const page = reinterpret_cast<char*>(
      reinterpret_cast<uintptr_t>(large) & ~(PageBytes() - 1));
  EXPECT_LE(ResidentPages(page, kManyPages * sizeof(void*)), 16u);
  Segment::Discard(metadata_, large);
}

// The first pages of a small heap, and the tag of the last.
TEST_F(SegmentTest, TheRecordOfASmallHeapHasTwoPages) {
  constexpr uint32_t kHeapPages = 1024;
  Segment* const segment = Segment::Make(metadata_, nullptr, start_, kHeapPages);
  ASSERT_NE(segment, nullptr);
  const uint32_t first_page = segment->first_page();
  const auto set_run = [&](PageRun* run, uint32_t first, uint32_t pages) {
    run->segment = segment;
    run->start = segment->AddressOf(first_page + first);
    run->pages = pages;
    segment->SetTags(run);
  };
  PageRun slab, top;
  set_run(&slab, 0, 256);
  set_run(&top, 256, kHeapPages - 256);
  segment->SetDirty(first_page, 256);
  EXPECT_EQ(segment->After(&slab), &top);
  EXPECT_EQ(segment->Before(&top), &slab);
  // Which begins with the tags of the pages below.
  EXPECT_GE(first_page, kHeapPages);
  char* const record = reinterpret_cast<char*>(
      (reinterpret_cast<uintptr_t>(segment) & ~(PageBytes() - 1)) -
      first_page * sizeof(void*));
  EXPECT_LE(ResidentPages(record, (first_page + kHeapPages) * sizeof(void*) +
                                      PageBytes()),
            2u);
  Segment::Discard(metadata_, segment);
}

TEST_F(SegmentDeathTest, VerifyFindsAGap) {
  PageRun first, second;
  MakeRun(&first, 0, 4);
  MakeRun(&second, 5, kPages - 5);
  EXPECT_EXIT(segment_->Verify(), testing::KilledBySignal(SIGABRT),
              "check failed");
}

TEST_F(SegmentDeathTest, VerifyFindsAStaleTag) {
  PageRun whole, inner;
  MakeRun(&inner, 7, 1);
  MakeRun(&whole, 0, kPages);
  EXPECT_EXIT(segment_->Verify(), testing::KilledBySignal(SIGABRT),
              "check failed");
  segment_->ClearTags(&inner);
  segment_->Verify();
}

}  // namespace
}  // namespace quarry
