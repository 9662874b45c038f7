#include "tcache/magazine.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tcache/size_classes.h"

namespace quarry {
namespace {

Magazine MakeMagazine(SizeClass size_class, int32_t capacity) {
  Magazine magazine = {};
  magazine.room = magazine.capacity = capacity;
  magazine.start_reciprocal = magazine.start_limit =
      StartReciprocal(size_class);
  magazine.min_request_bytes =
      static_cast<uint32_t>(MinRequestBytes(size_class));
  magazine.request_sizes = static_cast<uint32_t>(
      BlockBytes(size_class) - MinRequestBytes(size_class) + 1);
  return magazine;
}

TEST(Magazine, IsAStack) {
  FreeBlock blocks[3];
  Magazine magazine = MakeMagazine(kFirstClass, 3);
  for (FreeBlock& block : blocks) EXPECT_FALSE(magazine.Push(&block));
  EXPECT_EQ(magazine.room, 0);
  for (int i = 2; i >= 0; --i) {
    ASSERT_NE(magazine.head, nullptr);
    EXPECT_EQ(magazine.Pop(), &blocks[i]);
    EXPECT_EQ(magazine.room, 3 - i);
  }
  EXPECT_EQ(magazine.head, nullptr);
}

TEST(Magazine, TellsOfTheFirstBlockThatIsOneTooMany) {
  std::vector<FreeBlock> blocks(9);
  for (int32_t capacity = 0; capacity < 9; ++capacity) {
    Magazine magazine = MakeMagazine(kFirstClass, capacity);
    for (int32_t i = 0; i < capacity; ++i) {
      EXPECT_FALSE(magazine.Push(&blocks[static_cast<size_t>(i)]));
    }
    EXPECT_TRUE(magazine.Push(&blocks[static_cast<size_t>(capacity)]));
    EXPECT_EQ(magazine.room, -1);
    // Nothing of it is lost.
    EXPECT_EQ(magazine.Pop(), &blocks[static_cast<size_t>(capacity)]);
    EXPECT_EQ(magazine.room, 0);
  }
}

TEST(Magazine, KnowsTheStartsOfBlocksAtEveryAddressOfASlab) {
  constexpr uintptr_t kSlab = uintptr_t{0x7f1234560000};
  static_assert(kSlab % kGranuleBytes == 0);
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const Magazine magazine = MakeMagazine(c, 1);
    for (size_t offset = 0; offset < kGranuleBytes; ++offset) {
      ASSERT_EQ(
          magazine.IsBlockStart(reinterpret_cast<const void*>(kSlab + offset)),
          offset % BlockBytes(c) == 0)
          << offset << " in class " << BlockBytes(c);
    }
  }
}

TEST(Magazine, OfAColdClassHasBlockStartsOnlyForColdFrees) {
  Magazine magazine = MakeMagazine(ClassOf(48), 1);
  magazine.start_limit = 0;
  for (size_t offset = 0; offset < kGranuleBytes; ++offset) {
    const void* const p = reinterpret_cast<const void*>(offset);
    ASSERT_FALSE(magazine.IsBlockStart(p));
    ASSERT_EQ(magazine.IsBlockStartEvenIfCold(p), offset % 48 == 0);
  }
}

TEST(Magazine, OfAColdClassServesItsSizesOnlyForColdFrees) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    Magazine magazine = MakeMagazine(c, 1);
    const size_t least = MinRequestBytes(c);
    for (size_t bytes = 0; bytes <= kSmallMaxBytes; ++bytes) {
      ASSERT_FALSE(magazine.ServesRequestWhenCold(bytes)) << "it is warm";
    }
    magazine.min_request_bytes += Magazine::kColdShift;
    for (size_t bytes = 0; bytes <= kSmallMaxBytes; ++bytes) {
      ASSERT_FALSE(magazine.ServesRequest(bytes)) << bytes;
      ASSERT_EQ(magazine.ServesRequestWhenCold(bytes),
                bytes >= least && bytes <= BlockBytes(c))
          << bytes;
    }
    for (size_t bytes : {size_t{1} << 30, size_t{~uint32_t{0}}, ~size_t{0}}) {
      EXPECT_FALSE(magazine.ServesRequest(bytes));
      EXPECT_FALSE(magazine.ServesRequestWhenCold(bytes));
    }
  }
}

TEST(Magazine, OfNoClassHasNoBlockStartsAndServesNothing) {
  const Magazine magazine = {};
  for (size_t offset = 0; offset < kGranuleBytes; ++offset) {
    const void* const p = reinterpret_cast<const void*>(offset);
    ASSERT_FALSE(magazine.IsBlockStart(p));
    ASSERT_FALSE(magazine.IsBlockStartEvenIfCold(p));
    ASSERT_FALSE(magazine.ServesRequest(offset));
    ASSERT_FALSE(magazine.ServesRequestWhenCold(offset));
  }
  EXPECT_FALSE(magazine.ServesRequest(~size_t{0}));
}

TEST(Magazine, ServesTheSizesOfItsClassAndNoOthers) {
  for (SizeClass c = kFirstClass; c < kClasses; ++c) {
    const Magazine magazine = MakeMagazine(c, 1);
    for (size_t bytes = 0; bytes <= kSmallMaxBytes; ++bytes) {
      ASSERT_EQ(magazine.ServesRequest(bytes), ClassOf(bytes) == c) << bytes;
    }
    EXPECT_FALSE(magazine.ServesRequest(~uint32_t{0}));
    EXPECT_FALSE(magazine.ServesRequest(~size_t{0}));
  }
  const Magazine eight = MakeMagazine(kEightByteClass, 1);
  for (size_t bytes = 0; bytes <= 100; ++bytes) {
    EXPECT_EQ(eight.ServesRequest(bytes), bytes <= 8);
  }
}

}  // namespace
}  // namespace quarry
