#include "arena/settings.h"

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(Settings, AreSaneBeforeAnyoneSetsThem) {
  EXPECT_GE(settings.mmap_threshold_bytes, size_t{64} << 10);
  EXPECT_GT(settings.trim_threshold_bytes, size_t{0});
  EXPECT_EQ(settings.arenas_max, 0u);
  EXPECT_FALSE(settings.deepbind);
  EXPECT_TRUE(settings.check_sizes);
  EXPECT_EQ(settings.perturb_byte, 0);
}

}  // namespace
}  // namespace quarry
