#include "arena/trim_slack.h"

#include <unistd.h>

#include "arena/settings.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

class TrimSlackTest : public testing::Test {
 protected:
  TrimSlackTest() { settings.decay_ms = 10'000'000; }
  ~TrimSlackTest() override { settings.decay_ms = decay_ms_; }

  TrimSlack slack_;

 private:
  const size_t decay_ms_ = settings.decay_ms;
};

TEST_F(TrimSlackTest, NothingPurgedMakesNone) {
  slack_.NoteTaken(100);
  EXPECT_EQ(slack_.pages(), 0u);
  slack_.NotePurgedOverCap(50);
  EXPECT_EQ(slack_.pages(), 0u) << "not taken since";
}

TEST_F(TrimSlackTest, WhatIsTakenAgainDoesUpToWhatWasPurged) {
  slack_.NotePurgedOverCap(50);
  slack_.NotePurgedOverCap(50);
  slack_.NoteTaken(0);
  EXPECT_EQ(slack_.pages(), 0u);
  slack_.NoteTaken(30);
  EXPECT_EQ(slack_.pages(), 30u);
  slack_.NoteTaken(30);
  slack_.NoteTaken(1000);
  EXPECT_EQ(slack_.pages(), 100u);
  slack_.NoteTaken(1000);
  EXPECT_EQ(slack_.pages(), 100u);
}

TEST_F(TrimSlackTest, WhatIsTakenLaterThanTheDecayTimeDoesNot) {
  settings.decay_ms = 20;
  slack_.NotePurgedOverCap(50);
  usleep(40'000);
  slack_.NoteTaken(30);
  EXPECT_EQ(slack_.pages(), 0u);
  // Nor does it when the time is longer: that purge is done with.
  settings.decay_ms = 10'000'000;
  slack_.NoteTaken(30);
  EXPECT_EQ(slack_.pages(), 0u);
}

TEST_F(TrimSlackTest, ALaterPurgeDoesNotMakeAnEarlierOneYoung) {
  settings.decay_ms = 20;
  slack_.NotePurgedOverCap(50);
  usleep(40'000);
  slack_.NotePurgedOverCap(5);
  settings.decay_ms = 10'000'000;
  slack_.NoteTaken(30);
  EXPECT_EQ(slack_.pages(), 5u);
}

TEST_F(TrimSlackTest, WhatGrowsOldLowersIt) {
  slack_.NotePurgedOverCap(50);
  slack_.NoteTaken(50);
  slack_.NotePurgedByAge(20);
  EXPECT_EQ(slack_.pages(), 30u);
  slack_.NotePurgedByAge(40);
  EXPECT_EQ(slack_.pages(), 0u);
  slack_.NotePurgedByAge(40);
  EXPECT_EQ(slack_.pages(), 0u);
}

}  // namespace
}  // namespace quarry
