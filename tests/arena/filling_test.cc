#include "arena/filling.h"

#include <cstring>
#include <utility>
#include <vector>

#include "arena/limits.h"
#include "arena/page_source.h"
#include "arena/settings.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kLeast = FillingHistory::kLeastBytes;

class FillingHistoryTest : public testing::Test {
 protected:
  ~FillingHistoryTest() override {
    static constexpr Settings kDefaults;
    settings.huge_pages = kDefaults.huge_pages.load();
    settings.soft_limit_bytes = kDefaults.soft_limit_bytes.load();
    for (const auto& [start, bytes] : blocks_) source_.Unmap(start, bytes);
  }

  // A block, the first of whose bytes are touched.
  char* Allocate(size_t bytes, size_t touched_bytes = 0) {
    auto* const start = static_cast<char*>(source_.Map(bytes, PageBytes()));
    EXPECT_NE(start, nullptr);
    // A huge page would be touched whole.
    source_.KeepSmallPages(start, bytes);
    memset(start, 1, touched_bytes);
    history_.NoteAllocated(start, bytes);
    blocks_.emplace_back(start, bytes);
    return start;
  }

  bool ExpectsFilled(size_t bytes) {
    return history_.Expect(bytes) == Filling::kFromLowEnd;
  }

  OsPageSource source_;
  FillingHistory history_{source_};
  std::vector<std::pair<char*, size_t>> blocks_;
};

TEST_F(FillingHistoryTest, AtFirstNothingIsExpected) {
  EXPECT_FALSE(ExpectsFilled(kLeast));
  EXPECT_FALSE(ExpectsFilled(size_t{1} << 40));
}

TEST_F(FillingHistoryTest, WhoFilledTheLastFillsTheNext) {
  Allocate(8 * kMiB, 8 * kMiB);
  EXPECT_TRUE(ExpectsFilled(8 * kMiB));
  EXPECT_TRUE(ExpectsFilled(32 * kMiB));
  EXPECT_FALSE(ExpectsFilled(64 * kMiB)) << "much larger";
  EXPECT_TRUE(ExpectsFilled(kLeast));
  EXPECT_FALSE(ExpectsFilled(kLeast - 1)) << "small";
}

TEST_F(FillingHistoryTest, HalfOfItIsEnough) {
  Allocate(8 * kMiB, 4 * kMiB);
  EXPECT_TRUE(ExpectsFilled(16 * kMiB));
}

TEST_F(FillingHistoryTest, WhoTouchedLittleOfTheLastDoesSoWithTheNext) {
  char* const filled = Allocate(8 * kMiB, 8 * kMiB);
  EXPECT_TRUE(ExpectsFilled(8 * kMiB));
  char* const empty = Allocate(8 * kMiB, kMiB);
  EXPECT_FALSE(ExpectsFilled(8 * kMiB));
  // By now it may have been filled.
  memset(empty, 1, 8 * kMiB);
  EXPECT_TRUE(ExpectsFilled(8 * kMiB));
  EXPECT_EQ(history_.Observe(filled, 8 * kMiB), Filling::kFromLowEnd);
}

TEST_F(FillingHistoryTest, WhatWasFreedTellsAsMuch) {
  char* const block = Allocate(8 * kMiB, 8 * kMiB);
  EXPECT_EQ(history_.Observe(block, 8 * kMiB), Filling::kFromLowEnd);
  source_.Unmap(block, 8 * kMiB);
  blocks_.pop_back();
  Allocate(kMiB, 0);
  EXPECT_TRUE(ExpectsFilled(32 * kMiB)) << "the last allocated is too small to tell";
  char* const other = Allocate(8 * kMiB, 0);
  EXPECT_EQ(history_.Observe(other, 8 * kMiB), Filling::kUnknown);
  EXPECT_FALSE(ExpectsFilled(8 * kMiB));
}

TEST_F(FillingHistoryTest, WhatIsGoneTellsNothing) {
  char* const block = Allocate(8 * kMiB, 8 * kMiB);
  source_.Unmap(block, 8 * kMiB);
  blocks_.pop_back();
  EXPECT_FALSE(ExpectsFilled(8 * kMiB));
}

TEST_F(FillingHistoryTest, IsNotAskedTwiceAboutWhatWasFreed) {
  char* const block = Allocate(8 * kMiB, 0);
  EXPECT_EQ(history_.Observe(block, 8 * kMiB), Filling::kUnknown);
  memset(block, 1, 8 * kMiB);
  EXPECT_FALSE(ExpectsFilled(8 * kMiB));
  history_.NoteAllocated(block, 8 * kMiB);
  EXPECT_TRUE(ExpectsFilled(8 * kMiB));
}

TEST_F(FillingHistoryTest, SmallBlocksTellNothing) {
  const size_t bytes = FillingHistory::kLeastToldBytes;
  Allocate(bytes, bytes);
  EXPECT_TRUE(ExpectsFilled(kLeast));
  char* const small = Allocate(bytes - PageBytes(), 0);
  EXPECT_TRUE(ExpectsFilled(kLeast));
  EXPECT_EQ(history_.Observe(small, bytes - PageBytes()), Filling::kUnknown);
  EXPECT_TRUE(ExpectsFilled(kLeast));
}

TEST_F(FillingHistoryTest, SettingsMayWantNoHugePages) {
  char* const block = Allocate(8 * kMiB, 8 * kMiB);
  for (const HugePagePolicy policy : {HugePagePolicy::kNever, HugePagePolicy::kSystem}) {
    settings.huge_pages = policy;
    EXPECT_FALSE(ExpectsFilled(8 * kMiB));
    EXPECT_EQ(history_.Observe(block, 8 * kMiB), Filling::kUnknown);
  }
  settings.huge_pages = HugePagePolicy::kGrown;
  EXPECT_TRUE(ExpectsFilled(8 * kMiB));
}

TEST_F(FillingHistoryTest, NothingIsExpectedAboveTheSoftLimit) {
  Allocate(8 * kMiB, 8 * kMiB);
  settings.soft_limit_bytes = kMiB;
  ASSERT_TRUE(memory_limits.Charge(2 * kMiB));
  EXPECT_FALSE(ExpectsFilled(8 * kMiB));
  memory_limits.Refund(2 * kMiB);
  EXPECT_TRUE(ExpectsFilled(8 * kMiB));
}

}  // namespace
}  // namespace quarry
