#include "tcache/block_word.h"

#include <set>

#include "gtest/gtest.h"

namespace quarry {
namespace {

constexpr Tag kOwner = 5 * kOwnerUnit;

void* Address(uintptr_t address) { return reinterpret_cast<void*>(address); }

TEST(BlockWord, APlaceTellsSlabClassAndWord) {
  const uintptr_t slab = uintptr_t{0x7f1234} << kGranuleShift;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    for (size_t index = 0; index < SlabBlocks(c); index += 61) {
      void* const p = Address(slab + index * BlockBytes(c));
      const BlockWord word = {
          BlockWord::PlaceOf(p, kOwner | MagazineOffset(c), index),
          BlockWord::BitOf(index)};
      ASSERT_EQ(word.slab_start(), Address(slab));
      ASSERT_EQ(word.size_class(), c);
      ASSERT_EQ(word.magazine_offset(), MagazineOffset(c));
      ASSERT_EQ(word.word(), index / 64);
      ASSERT_EQ(word.first_block(), p);
    }
  }
}

TEST(BlockWord, PlacesOfDifferentWordsDiffer) {
  std::set<uint64_t> places;
  size_t words = 0;
  for (uintptr_t granule : {1, 2, 3}) {
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      for (size_t word = 0; word * 64 < SlabBlocks(c); ++word) {
        for (size_t index : {word * 64, word * 64 + 63}) {
          places.insert(BlockWord::PlaceOf(Address(granule << kGranuleShift),
                                           kOwner | MagazineOffset(c), index));
        }
        ++words;
        ASSERT_EQ(places.size(), words);
      }
    }
  }
}

// Whose slab it is may change while its blocks are gathered.
TEST(BlockWord, APlaceIsTheSameWhoeverTheOwner) {
  void* const p = Address(3 << kGranuleShift);
  EXPECT_EQ(BlockWord::PlaceOf(p, kOwner | MagazineOffset(4), 70),
            BlockWord::PlaceOf(p, 9 * kOwner | MagazineOffset(4), 70));
}

TEST(BlockWord, NoPlaceIsThatOfNoBlock) {
  EXPECT_NE(BlockWord::PlaceOf(Address(kGranuleBytes), kNoTag, 0),
            BlockWord().place);
}

TEST(BlockWord, ABlockIsAddedOnce) {
  BlockWord word{};
  for (size_t index : {64, 127, 70}) {
    EXPECT_TRUE(word.Add(index));
    EXPECT_FALSE(word.Add(index));
  }
  EXPECT_EQ(word.bits, uint64_t{1} << 63 | 1 << 6 | 1);
}

}  // namespace
}  // namespace quarry
