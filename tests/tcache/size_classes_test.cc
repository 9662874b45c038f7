#include "tcache/size_classes.h"

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(SizeClasses, GrowAndKeepTheAlignmentOfMalloc) {
  EXPECT_EQ(BlockBytes(kEightByteClass), 8u);
  EXPECT_EQ(BlockBytes(kFirstClass), 16u);
  for (SizeClass c = kFirstClass; c < kClasses; ++c) {
    EXPECT_GT(BlockBytes(c), BlockBytes(c - 1));
    EXPECT_EQ(BlockBytes(c) % kMinAlignmentBytes, 0u);
  }
  EXPECT_EQ(BlockBytes(kClasses - 1), kSmallMaxBytes);
}

TEST(SizeClasses, EverySizeGetsTheSmallestClassThatHoldsIt) {
  SizeClass expected = kFirstClass;
  for (size_t bytes = 0; bytes <= kSmallMaxBytes; ++bytes) {
    if (bytes > BlockBytes(expected)) ++expected;
    ASSERT_EQ(ClassOf(bytes), expected) << bytes;
    ASSERT_GE(BlockBytes(expected), bytes);
    ASSERT_LE(MinRequestBytes(expected), bytes);
  }
  EXPECT_EQ(expected, kClasses - 1);
}

TEST(SizeClasses, AMediumBlockIsAtMostTwoSizesTooLarge) {
  for (size_t bytes = kSmallMaxBytes + 1; bytes < size_t{8} << 20; bytes += 1001) {
    const size_t medium = MediumBytes(bytes);
    const size_t most = MostMediumBytes(bytes);
    ASSERT_GE(medium, bytes);
    ASSERT_EQ(MostMediumBytes(medium), most) << bytes;
    ASSERT_LE(most, medium + medium / 4) << bytes;
    // With pages that are larger than the steps, there may be no such sizes.
    const size_t next = medium + std::bit_floor(medium) / kStepsPerDoubling;
    ASSERT_EQ(most, next + std::bit_floor(next) / kStepsPerDoubling) << bytes;
    if (std::bit_floor(bytes) / kStepsPerDoubling < PageBytes()) continue;
    ASSERT_EQ(most, MediumBytes(MediumBytes(medium + 1) + 1)) << bytes;
  }
}

TEST(SizeClasses, EveryClassServesItsOwnSizes) {
  for (SizeClass c = kFirstClass; c < kClasses; ++c) {
    EXPECT_EQ(ClassOf(BlockBytes(c)), c);
    EXPECT_EQ(ClassOf(MinRequestBytes(c)), c);
    if (c > kFirstClass) {
      EXPECT_EQ(ClassOf(MinRequestBytes(c) - 1), c - 1);
    }
  }
}

TEST(SizeClasses, WasteIsBounded) {
  for (size_t bytes = 1; bytes <= kSmallMaxBytes; ++bytes) {
    const size_t waste = BlockBytes(ClassOf(bytes)) - bytes;
    if (bytes <= kLinearMaxBytes) {
      ASSERT_LT(waste, kMinAlignmentBytes) << bytes;
    } else {
      const size_t share = bytes <= kEvenMaxBytes        ? 8
                           : bytes <= 2 * kEvenMaxBytes  ? 7
                           : bytes <= kSlabsOnlyMaxBytes ? 6
                                                         : 1;
      ASSERT_LE(waste * share, bytes) << bytes;
    }
  }
}

// A larger class would else take no more of a slab.
TEST(SizeClasses, EachClassHasMoreBlocksInASlabThanTheNext) {
  for (SizeClass c = kFirstClass; c < kClasses - 1; ++c) {
    if (BlockBytes(c + 1) == kSlabsOnlyMaxBytes) continue;
    EXPECT_GT(SlabBlocks(c), SlabBlocks(c + 1)) << BlockBytes(c);
  }
}

TEST(SizeClasses, APowerOfTwoAndALittleHasAClassOfItsOwn) {
  for (size_t power : {1024, 2048, 4096}) {
    for (size_t header : {8, 16, 32, 64}) {
      const size_t waste = BlockBytes(ClassOf(power + header)) - power - header;
      EXPECT_LE(waste * 15, power) << power + header;
    }
  }
  EXPECT_EQ(BlockBytes(ClassOf(4096 + 272)), 4096u + 272u);
}

// Against a search through all classes, at the sizes where the answer changes.
TEST(SizeClasses, EveryAlignmentGetsTheSmallestClassThatHasIt) {
  const auto check = [](size_t bytes, size_t alignment) {
    SizeClass expected = kNoClass;
    for (SizeClass c = kClasses - 1; c >= kFirstClass; --c) {
      if (BlockBytes(c) >= bytes && BlockBytes(c) % alignment == 0) {
        expected = c;
      }
    }
    ASSERT_EQ(ClassOf(bytes, alignment), expected) << bytes << " " << alignment;
  };
  for (size_t alignment = 1; alignment <= size_t{1} << 31; alignment *= 2) {
    for (size_t bytes : {size_t{0}, size_t{1}, kSmallMaxBytes + 1,
                         size_t{1} << 40, ~size_t{0}}) {
      check(bytes, alignment);
    }
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      for (size_t bytes = BlockBytes(c) - 1; bytes <= BlockBytes(c) + 1;
           ++bytes) {
        check(bytes, alignment);
      }
    }
  }
}

TEST(SizeClasses, AnAlignedRequestIsOneOfARoundedSize) {
  for (size_t alignment = 1; alignment <= kEvenMaxBytes; alignment *= 2) {
    for (size_t bytes = 0; bytes <= kEvenMaxBytes; ++bytes) {
      const size_t aligned_bytes = AlignedBytes(bytes, alignment);
      ASSERT_LE(aligned_bytes, kEvenMaxBytes);
      ASSERT_EQ(ClassOf(aligned_bytes), ClassOf(bytes, alignment))
          << bytes << " " << alignment;
    }
  }
}

TEST(SizeClasses, SlabsHoldWholeBlocks) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    EXPECT_LE(SlabBlocks(c) * BlockBytes(c), kSlabBytes);
    EXPECT_LE(SlabBlocks(c), kMaxBlocks);
    EXPECT_GE(SlabBlocks(c), BlockBytes(c) <= kSlabsOnlyMaxBytes ? 4u : 1u);
    // The rest is no block, unless the summary has no bit for it.
    if (SlabBlocks(c) < kMaxBlocks) {
      EXPECT_LT(kSlabBytes - SlabBlocks(c) * BlockBytes(c), BlockBytes(c));
    }
  }
}

TEST(SizeClasses, TheStartReciprocalKnowsEveryMultiple) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const uint32_t reciprocal = StartReciprocal(c);
    const uint32_t bytes = static_cast<uint32_t>(BlockBytes(c));
    for (uint32_t offset = 0; offset < kSlabBytes; ++offset) {
      ASSERT_EQ(offset * reciprocal < reciprocal, offset % bytes == 0)
          << offset << " in class " << bytes;
      const BlockOfOffset block(offset, reciprocal);
      ASSERT_EQ(block.index(), offset / bytes) << offset << " in " << bytes;
      ASSERT_EQ(block.IsStart(), offset % bytes == 0);
    }
  }
}

TEST(SizeClasses, NothingStartsInAClassWithoutReciprocal) {
  for (uint32_t offset : {0u, 16u, 0xffffu}) {
    EXPECT_FALSE(BlockOfOffset(offset, 0).IsStart());
  }
}

TEST(SizeClasses, AnAddressHasItsOffsetInTheGranule) {
  const auto offset_of = [](uintptr_t address) {
    return OffsetInGranule(reinterpret_cast<void*>(address));
  };
  EXPECT_EQ(offset_of(5 * kGranuleBytes), 0u);
  EXPECT_EQ(offset_of(5 * kGranuleBytes + 48), 48u);
  EXPECT_EQ(offset_of(6 * kGranuleBytes - 1), kGranuleBytes - 1);
}

}  // namespace
}  // namespace quarry
