#include "arena/clock.h"

#include <signal.h>
#include <sys/time.h>

#include <cerrno>
#include <chrono>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(Clock, AgesWrapAround) {
  EXPECT_EQ(AgeMs(100, 150), 50u);
  EXPECT_EQ(AgeMs(~uint32_t{0} - 9, 40), 50u);
}

TEST(Clock, TimesAreComparedAcrossTheWrap) {
  EXPECT_TRUE(IsBefore(100, 150));
  EXPECT_FALSE(IsBefore(150, 100));
  EXPECT_FALSE(IsBefore(100, 100));
  EXPECT_TRUE(IsBefore(~uint32_t{0}, 0));
  EXPECT_FALSE(IsBefore(0, ~uint32_t{0}));
  constexpr uint32_t kHalf = uint32_t{1} << 31;
  EXPECT_TRUE(IsBefore(7, 7 + (kHalf - 1)));
  EXPECT_FALSE(IsBefore(7, 7 + (kHalf + 1)));
}

TEST(Clock, SleepsForTheWholeTime) {
  // A profiler's signals, which come far more often.
  signal(SIGALRM, [](int) {});
  const itimerval often = {{0, 200}, {0, 200}};
  const itimerval never = {};
  ASSERT_EQ(setitimer(ITIMER_REAL, &often, nullptr), 0);
  errno = 7;
  for (uint32_t ns : {1u, 3'000'000u, 1'000'000'001u}) {
    const auto start = std::chrono::steady_clock::now();
    SleepNs(ns);
    EXPECT_GE(std::chrono::steady_clock::now() - start,
              std::chrono::nanoseconds(ns));
  }
  EXPECT_EQ(errno, 7);
  setitimer(ITIMER_REAL, &never, nullptr);
}

}  // namespace
}  // namespace quarry
