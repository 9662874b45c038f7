#include "tcache/start_retry.h"

#include <algorithm>
#include <cstdint>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(StartRetry, ItIsNotDueBeforeAnyFailure) {
  const StartRetry retry;
  for (const uint32_t now_ms : {0u, StartRetry::kMostPauseMs, UINT32_MAX}) {
    EXPECT_FALSE(retry.IsDue(now_ms));
  }
}

TEST(StartRetry, EachFailureDoublesThePauseUpToABound) {
  StartRetry retry;
  // Over the end of the clock.
  uint32_t now_ms = UINT32_MAX - 5 * StartRetry::kFirstPauseMs;
  uint32_t pause_ms = StartRetry::kFirstPauseMs;
  for (int failures = 0; failures < 10; ++failures) {
    retry.NoteFailure(now_ms);
    EXPECT_FALSE(retry.IsDue(now_ms + pause_ms - 1)) << failures;
    EXPECT_TRUE(retry.IsDue(now_ms + pause_ms)) << failures;
    now_ms += pause_ms;
    pause_ms = std::min(2 * pause_ms, StartRetry::kMostPauseMs);
  }
  EXPECT_EQ(pause_ms, StartRetry::kMostPauseMs);
}

}  // namespace
}  // namespace quarry
