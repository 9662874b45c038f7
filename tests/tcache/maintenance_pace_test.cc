#include "tcache/maintenance_pace.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(MaintenancePace, TheThreadSleepsWhenNothingIsLeft) {
  MaintenancePace pace;
  uint64_t most_ms = 1;
  EXPECT_FALSE(pace.SleepsAfter(TickResult::kGaveBack, 125, &most_ms));
  EXPECT_FALSE(pace.SleepsAfter(TickResult::kInVain, 125, &most_ms));
  EXPECT_TRUE(pace.SleepsAfter(TickResult::kNothingLeft, 125, &most_ms));
  EXPECT_EQ(most_ms, MaintenancePace::kUntilWork);
}

TEST(MaintenancePace, TicksInVainBecomeRareUntilThereIsWork) {
  MaintenancePace pace;
  for (int round = 0; round < 2; ++round) {
    uint64_t most_ms = 0;
    for (uint32_t i = 0; i < MaintenancePace::kTicksInVain; ++i) {
      EXPECT_FALSE(pace.SleepsAfter(TickResult::kInVain, 125, &most_ms));
    }
    EXPECT_TRUE(pace.SleepsAfter(TickResult::kInVain, 125, &most_ms));
    EXPECT_EQ(most_ms, 250u);
    EXPECT_TRUE(pace.SleepsAfter(TickResult::kInVain, 125, &most_ms));
    EXPECT_EQ(most_ms, 500u);
    for (int i = 0; i < 100; ++i) {
      EXPECT_TRUE(pace.SleepsAfter(TickResult::kInVain, 125, &most_ms));
    }
    EXPECT_EQ(most_ms, uint64_t{125} << 20);
    if (round == 0) pace.NoteWork();
  }
  uint64_t most_ms;
  EXPECT_FALSE(pace.SleepsAfter(TickResult::kGaveBack, 125, &most_ms));
  EXPECT_FALSE(pace.SleepsAfter(TickResult::kInVain, 125, &most_ms));
}

}  // namespace
}  // namespace quarry
