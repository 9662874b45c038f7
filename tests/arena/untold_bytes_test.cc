#include "arena/untold_bytes.h"

#include "gtest/gtest.h"

namespace quarry {
namespace {

// Whether the step tells a thread that sleeps of work.
template <typename Step>
bool Tells(Step step) {
  maintenance_signal.FallAsleep();
  step();
  return maintenance_signal.state() != MaintenanceSignal::kAsleep;
}

TEST(UntoldBytes, MoreThanAMebibyteIsTold) {
  constexpr size_t kMiB = size_t{1} << 20;
  UntoldBytes untold;
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(Tells([&] { untold.Add(kMiB - 1); }));
    EXPECT_FALSE(Tells([&] { untold.Add(1); }));
    EXPECT_TRUE(Tells([&] { untold.Add(1); })) << "and counts anew";
  }
  EXPECT_TRUE(Tells([&] { untold.Add(2 * kMiB); }));
  EXPECT_FALSE(Tells([&] { untold.Add(kMiB); })) << "what was told does not count";
}

TEST(UntoldBytes, ThePlaceMayHaveALesserShare) {
  UntoldBytes untold;
  EXPECT_FALSE(Tells([&] { untold.Add(100, 100); }));
  EXPECT_TRUE(Tells([&] { untold.Add(1, 100); }));
  EXPECT_FALSE(Tells([&] { untold.Add(100, 100); }));
  EXPECT_TRUE(Tells([&] { untold.Add(0, 50); })) << "it has become less";
}

}  // namespace
}  // namespace quarry
