#include "tcache/foreign_allowance.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(ForeignAllowance, IsUsedUpClassByClass) {
  ForeignAllowance allowance;
  EXPECT_FALSE(allowance.IsAny());
  EXPECT_FALSE(allowance.TryUse(kFirstClass));
  allowance.Add(kFirstClass, 2);
  allowance.Add(kClasses - 1, 1);
  EXPECT_TRUE(allowance.TryUse(kFirstClass));
  allowance.Verify();
  EXPECT_TRUE(allowance.TryUse(kFirstClass));
  EXPECT_FALSE(allowance.TryUse(kFirstClass));
  EXPECT_TRUE(allowance.IsAny());
  EXPECT_TRUE(allowance.TryUse(kClasses - 1));
  EXPECT_FALSE(allowance.IsAny());
  allowance.Verify();
}

TEST(ForeignAllowance, ASlabAllowsEightSlabsOfBlocksOfTwoLinesAndMore) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    ForeignAllowance allowance;
    allowance.AddForSlab(c);
    EXPECT_EQ(ForeignAllowance::MayHave(c), BlockBytes(c) >= 128);
    EXPECT_EQ(allowance.IsAny(), ForeignAllowance::MayHave(c));
    size_t blocks = 0;
    while (allowance.TryUse(c)) ++blocks;
    EXPECT_EQ(blocks, BlockBytes(c) >= 128 ? 8 * SlabBlocks(c) : 0);
  }
}

TEST(ForeignAllowance, DoesNotWrapAround) {
  ForeignAllowance allowance;
  for (int i = 0; i < 3; ++i) {
    allowance.Add(kFirstClass, UINT16_MAX - 1);
    allowance.Verify();
  }
  for (uint32_t i = 0; i < UINT16_MAX; ++i) ASSERT_TRUE(allowance.TryUse(kFirstClass));
  EXPECT_FALSE(allowance.TryUse(kFirstClass));
  EXPECT_FALSE(allowance.IsAny());
}

TEST(ForeignAllowance, Ends) {
  ForeignAllowance allowance;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) allowance.Add(c, c);
  allowance.Clear();
  EXPECT_FALSE(allowance.IsAny());
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) EXPECT_FALSE(allowance.TryUse(c));
  allowance.Verify();
}

}  // namespace
}  // namespace quarry
