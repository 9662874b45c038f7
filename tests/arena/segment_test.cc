#include "arena/segment.h"

#include <sys/mman.h>

#include <algorithm>
#include <csignal>
#include <vector>

#include "arena/metadata.h"
#include "arena/run.h"
#include "gtest/gtest.h"
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
  for (uint32_t i = 0; i < kPages; ++i) EXPECT_EQ(segment_->TagAt(i), nullptr);
  EXPECT_EQ(segment_->CountDirty(0, kPages), 0u);
}

TEST_F(SegmentTest, KnowsThePageOfAnAddress) {
  EXPECT_EQ(segment_->PageOf(start_), 0u);
  EXPECT_EQ(segment_->PageOf(PageAt(1) - 1), 0u);
  EXPECT_EQ(segment_->PageOf(PageAt(1)), 1u);
  EXPECT_EQ(segment_->PageOf(PageAt(kPages) - 1), kPages - 1);
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
      ASSERT_EQ(segment_->TagAt(i), i == 0 || i == pages - 1 ? &run : nullptr);
    }
  }
  segment_->Verify();
}

// Against one bool for each page, at all places around the ends of words.
TEST_F(SegmentTest, CountsDirtyPages) {
  std::vector<bool> model(kPages);
  const auto check = [&] {
    for (uint32_t first = 0; first < kPages; first += 13) {
      uint32_t expected = 0;
      for (uint32_t pages = 0; first + pages < kPages; ++pages) {
        ASSERT_EQ(segment_->CountDirty(first, pages), expected);
        expected += model[first + pages];
      }
    }
  };
  const auto set = [&](uint32_t first, uint32_t pages, bool dirty) {
    dirty ? segment_->SetDirty(first, pages) : segment_->SetClean(first, pages);
    for (uint32_t i = 0; i < pages; ++i) model[first + i] = dirty;
    check();
  };
  set(0, 1, true);
  set(63, 1, true);
  set(64, 64, true);
  set(130, 150, true);
  set(190, 3, false);
  set(0, 64, false);
  set(kPages - 1, 1, true);
  set(0, kPages, true);
  set(1, kPages - 2, false);
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
  large->SetDirty(0, 16);
  std::vector<unsigned char> resident(kManyPages * sizeof(void*) / PageBytes());
  char* const record = reinterpret_cast<char*>(large);
  ASSERT_EQ(mincore(record, resident.size() * PageBytes(), resident.data()), 0);
  EXPECT_LE(std::count(resident.begin(), resident.end(), 1), 16);
  Segment::Discard(metadata_, large);
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
