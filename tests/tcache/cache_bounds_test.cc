#include "tcache/cache_bounds.h"

#include "gtest/gtest.h"

namespace quarry {
namespace {

// docs/design.md and README.md say how much an idle thread keeps.
TEST(CacheBounds, LittleIsOutOfReach) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const auto most = static_cast<size_t>(MostMagazineBlocks(c));
    const size_t with_spare = most + FullMagazineBlocks(c);
    if (BlockBytes(c) <= 4096) {
      EXPECT_LE(with_spare * BlockBytes(c), size_t{68} << 10) << c;
    } else if (BlockBytes(c) < size_t{14} << 10) {
      EXPECT_LE(with_spare * BlockBytes(c), size_t{144} << 10) << c;
    } else {
      EXPECT_EQ(with_spare, 9u) << c;
    }
  }
}

TEST(CacheBounds, AMagazineBeginsSmallAndHasRoomForTwoRefills) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    EXPECT_GE(FirstMagazineBlocks(c), 2);
    EXPECT_LE(FirstMagazineBlocks(c), MostMagazineBlocks(c));
    EXPECT_GE(MostRefillBlocks(c), 1);
    EXPECT_LE(MostRefillBlocks(c), MostMagazineBlocks(c) / 2);
    EXPECT_LE(static_cast<size_t>(MostRefillBlocks(c) - 1) * BlockBytes(c),
              kMostMagazineBytes / 2);
  }
}

TEST(CacheBounds, ADepotHoldsAMagazineAtLeast) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    EXPECT_GE(MostDepotMagazines(c), 1u);
    EXPECT_LE(MostDepotMagazines(c), kDepotMagazines);
    EXPECT_LE(MostDepotMagazines(c) * FullMagazineBytes(c),
              IsLarge(c) ? kMostDepotBytes : kMostShelfBytes);
  }
}

}  // namespace
}  // namespace quarry
