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
constexpr size_t kBytes = 8 * kMiB;
constexpr size_t kLeast = FillingHistory::kLeastBytes;
constexpr size_t kCredit = FillingHistory::kCreditOfByte;

class FillingHistoryTest : public testing::Test {
 protected:
  ~FillingHistoryTest() override {
    static constexpr Settings kDefaults;
    settings.huge_pages = kDefaults.huge_pages.load();
    settings.soft_limit_bytes = kDefaults.soft_limit_bytes.load();
    for (const auto& [start, bytes] : blocks_) source_.Unmap(start, bytes);
  }

  // Pages that nobody has touched.
  char* Map(size_t bytes) {
    auto* const start = static_cast<char*>(source_.Map(bytes, PageBytes()));
    EXPECT_NE(start, nullptr);
    // Of a huge page one touch would be many.
    source_.KeepSmallPages(start, bytes);
    blocks_.emplace_back(start, bytes);
    return start;
  }

  // A block of which the first bytes are written to.
  char* Allocate(size_t bytes, size_t touched_bytes) {
    char* const start = Map(bytes);
    history_.NoteAllocated(start, bytes);
    memset(start, 1, touched_bytes);
    return start;
  }

  bool ExpectsFilled(size_t bytes) {
    return history_.Expect(bytes) == Filling::kFromLowEnd;
  }
  bool SeesFilled(char* start, size_t bytes) {
    return history_.Observe(start, bytes) == Filling::kFromLowEnd;
  }

  // What is left of the credit, which it uses up.
  size_t Credit() {
    size_t bytes = 0;
    while (ExpectsFilled(kLeast)) bytes += kLeast;
    return bytes;
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
  Allocate(kBytes, kBytes);
  EXPECT_FALSE(ExpectsFilled(kLeast - 1)) << "small";
  EXPECT_TRUE(ExpectsFilled(kCredit * kBytes));
  EXPECT_FALSE(ExpectsFilled(kLeast)) << "enough was expected";
}

TEST_F(FillingHistoryTest, TheNextMayBeSoMuchLarger) {
  Allocate(kBytes, kBytes);
  EXPECT_FALSE(ExpectsFilled(kCredit * kBytes + PageBytes()));
}

TEST_F(FillingHistoryTest, HalfOfItIsEnough) {
  Allocate(kBytes, kBytes / 2);
  EXPECT_TRUE(ExpectsFilled(kBytes));
}

TEST_F(FillingHistoryTest, WhatWasExpectedUsesUpWhatWasSeen) {
  Allocate(kBytes, kBytes);
  for (size_t i = 0; i < kCredit; ++i) EXPECT_TRUE(ExpectsFilled(kBytes));
  EXPECT_FALSE(ExpectsFilled(kBytes));
}

TEST_F(FillingHistoryTest, WhatWasExpectedMayBeTakenBack) {
  Allocate(kBytes, kBytes);
  EXPECT_TRUE(ExpectsFilled(kBytes));
  history_.TakeBack(kBytes);
  EXPECT_EQ(Credit(), kBytes * kCredit);
}

TEST_F(FillingHistoryTest, WhoTouchedLittleOfTheLastDoesSoWithTheNext) {
  Allocate(kBytes, kBytes);
  EXPECT_TRUE(ExpectsFilled(kBytes));
  Allocate(kBytes, kMiB);
  EXPECT_FALSE(ExpectsFilled(kLeast));
}

TEST_F(FillingHistoryTest, WhatWasNotFilledTakesAwayAsMuchAsWhatWasGives) {
  ASSERT_TRUE(SeesFilled(Allocate(4 * kBytes, 4 * kBytes), 4 * kBytes));
  EXPECT_FALSE(SeesFilled(Allocate(kBytes, 0), kBytes));
  EXPECT_EQ(Credit(), 3 * kBytes * kCredit);
  EXPECT_TRUE(SeesFilled(Allocate(kBytes, kBytes), kBytes));
  EXPECT_FALSE(SeesFilled(Allocate(2 * kBytes, 0), 2 * kBytes));
  EXPECT_EQ(Credit(), 0u);
}

TEST_F(FillingHistoryTest, WhatIsSeenAgainIsNoMore) {
  char* const block = Allocate(kBytes, kBytes);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(SeesFilled(block, kBytes));
  EXPECT_EQ(Credit(), kBytes * kCredit);
}

// By one page in each eighth.
TEST_F(FillingHistoryTest, TellsWhatIsFilledFromItsLowEndOn) {
  for (const size_t bytes : {kBytes, kBytes - PageBytes()}) {
    const auto is_filled = [&](auto touch) {
      char* const start = Map(bytes);
      touch(start);
      const bool is_seen = SeesFilled(start, bytes);
      Credit();
      history_.NoteAllocated(start, bytes);
      EXPECT_EQ(ExpectsFilled(kLeast), is_seen) << "by residence";
      Credit();
      return is_seen;
    };
    EXPECT_FALSE(is_filled([](char*) {}));
    EXPECT_TRUE(is_filled([=](char* p) { memset(p, 1, bytes); }));
    EXPECT_TRUE(is_filled([=](char* p) { memset(p, 1, bytes / 2); }));
    EXPECT_FALSE(is_filled([=](char* p) { memset(p, 1, bytes / 4); }));
    EXPECT_FALSE(is_filled([=](char* p) { memset(p + bytes / 2, 1, bytes / 2); }));
    EXPECT_FALSE(is_filled([=](char* p) {
      memset(p, 1, bytes / 2);
      memset(p + bytes / 4 * 3, 1, bytes / 4);
    }));
    EXPECT_FALSE(is_filled([=](char* p) { p[0] = p[bytes - 1] = 1; }));
    // One page of so many.
    for (size_t every = 2 * PageBytes(); every <= kMiB; every *= 2) {
      EXPECT_FALSE(is_filled([&](char* p) {
        for (size_t i = 0; i < bytes; i += every) p[i] = 1;
      })) << every;
    }
  }
}

// As a block on huge pages is, or one that calloc has cleared.
TEST_F(FillingHistoryTest, WhatIsResidentAndZeroWasNotFilled) {
  char* const block = Map(kBytes);
  for (size_t i = 0; i < kBytes; i += PageBytes()) {
    *const_cast<volatile char*>(block + i) = 0;
  }
  EXPECT_FALSE(SeesFilled(block, kBytes));
  // One byte of a page is enough.
  for (size_t i = 0; i < kBytes; i += PageBytes()) block[i + PageBytes() - 1] = 1;
  EXPECT_TRUE(SeesFilled(block, kBytes));
}

TEST_F(FillingHistoryTest, IsNotAskedTwiceAboutABlock) {
  char* const block = Allocate(kBytes, 0);
  EXPECT_FALSE(ExpectsFilled(kBytes));
  memset(block, 1, kBytes);
  EXPECT_FALSE(ExpectsFilled(kBytes));
  history_.NoteAllocated(block, kBytes);
  EXPECT_TRUE(ExpectsFilled(kBytes));
  Credit();
  history_.NoteAllocated(block, kBytes);
  EXPECT_TRUE(SeesFilled(block, kBytes));
  Credit();
  EXPECT_FALSE(ExpectsFilled(kBytes)) << "it was freed";
}

TEST_F(FillingHistoryTest, WhatIsGoneTellsNothing) {
  char* const block = Allocate(kBytes, kBytes);
  source_.Unmap(block, kBytes);
  blocks_.pop_back();
  EXPECT_FALSE(ExpectsFilled(kBytes));
}

TEST_F(FillingHistoryTest, SmallBlocksTellNothing) {
  const size_t least = FillingHistory::kLeastToldBytes;
  Allocate(least, least);
  Allocate(least - PageBytes(), 0);
  EXPECT_TRUE(ExpectsFilled(kLeast));
  char* const filled = Allocate(least, least);
  EXPECT_TRUE(SeesFilled(filled, least));
  EXPECT_FALSE(SeesFilled(filled, least - PageBytes()));
  EXPECT_TRUE(ExpectsFilled(kLeast));
}

TEST_F(FillingHistoryTest, SettingsMayWantNoHugePages) {
  char* const block = Allocate(kBytes, kBytes);
  for (const HugePagePolicy policy : {HugePagePolicy::kNever, HugePagePolicy::kSystem}) {
    settings.huge_pages = policy;
    EXPECT_FALSE(ExpectsFilled(kBytes));
    EXPECT_TRUE(SeesFilled(block, kBytes)) << "all the same";
    EXPECT_FALSE(ExpectsFilled(kBytes));
  }
  settings.huge_pages = HugePagePolicy::kGrown;
  EXPECT_TRUE(ExpectsFilled(kBytes));
}

TEST_F(FillingHistoryTest, NothingIsExpectedAboveTheSoftLimit) {
  Allocate(kBytes, kBytes);
  settings.soft_limit_bytes = kMiB;
  ASSERT_TRUE(memory_limits.Charge(2 * kMiB));
  EXPECT_FALSE(ExpectsFilled(kBytes));
  memory_limits.Refund(2 * kMiB);
  EXPECT_TRUE(ExpectsFilled(kBytes));
}

}  // namespace
}  // namespace quarry
