#include "arena/growth_history.h"

#include <vector>

#include "arena/page_source.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

constexpr uint32_t kOfSample = GrowthHistory::kRangesOfSample;

// A source of which so many bytes are resident wherever one looks, and which notes where
// that was.
class ResidentPageSource final : public PageSource {
 public:
  size_t resident_bytes = 0;
  std::vector<void*> looked_at;

 private:
  size_t ResidentBytes(void* start, size_t bytes) override {
    EXPECT_EQ(bytes, kHugePageBytes);
    looked_at.push_back(start);
    return resident_bytes;
  }
};

class GrowthHistoryTest : public testing::Test {
 protected:
  // The range with that number. Nothing is touched.
  static char* RangeAt(size_t number) {
    return reinterpret_cast<char*>((number + 1) * kHugePageBytes);
  }

  // Begins the next range.
  bool ExpectsFilled() {
    return history_.Expect(source_, RangeAt(begun_++)) == Filling::kFromLowEnd;
  }

  // Of the next ranges, as many as a sample speaks for, how many are expected to be
  // filled.
  uint32_t CountExpected() {
    uint32_t expected = 0;
    for (uint32_t i = 0; i < kOfSample; ++i) expected += ExpectsFilled();
    return expected;
  }

  ResidentPageSource source_;
  GrowthHistory history_;
  size_t begun_ = 0;
};

TEST_F(GrowthHistoryTest, AtFirstNothingIsExpectedNorLookedAt) {
  source_.resident_bytes = kHugePageBytes;
  EXPECT_EQ(CountExpected(), 0u);
  EXPECT_TRUE(source_.looked_at.empty());
}

TEST_F(GrowthHistoryTest, WhereASampleWasFilledAllButTheNextSampleWillBe) {
  source_.resident_bytes = kHugePageBytes;
  (void)CountExpected();
  for (uint32_t i = 1; i <= 3; ++i) {
    EXPECT_FALSE(ExpectsFilled()) << "the next sample";
    ASSERT_EQ(source_.looked_at.size(), i);
    EXPECT_EQ(source_.looked_at.back(), RangeAt((i - 1) * kOfSample));
    for (uint32_t range = 1; range < kOfSample; ++range) {
      EXPECT_TRUE(ExpectsFilled());
    }
  }
  EXPECT_EQ(source_.looked_at.size(), 3u);
}

TEST_F(GrowthHistoryTest, ItFollowsWhatTheProgramDoes) {
  (void)CountExpected();
  for (const bool is_filled : {true, false, false, true, true, false}) {
    source_.resident_bytes = is_filled ? kHugePageBytes : kHugePageBytes / 2;
    EXPECT_EQ(CountExpected(), is_filled ? kOfSample - 1 : 0);
  }
}

TEST_F(GrowthHistoryTest, SevenEighthsAreEnough) {
  (void)CountExpected();
  source_.resident_bytes = kHugePageBytes / 8 * 7;
  EXPECT_EQ(CountExpected(), kOfSample - 1);
  source_.resident_bytes -= PageBytes();
  EXPECT_EQ(CountExpected(), 0u);
}

TEST_F(GrowthHistoryTest, WhatIsNotKnownIsNotExpected) {
  source_.resident_bytes = SIZE_MAX;
  (void)CountExpected();
  EXPECT_EQ(CountExpected(), 0u);
}

}  // namespace
}  // namespace quarry
