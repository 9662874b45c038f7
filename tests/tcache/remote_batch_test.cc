#include "tcache/remote_batch.h"

#include <map>
#include <random>
#include <set>
#include <utility>

#include "gtest/gtest.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// A slab that only has a name and addresses: a batch touches neither.
struct FakeSlab {
  FakeSlab(uintptr_t number, SizeClass of_class, Tag owner = kOwnerUnit)
      : slab(reinterpret_cast<Slab*>(number * 128)),
        start(number * kGranuleBytes),
        size_class(of_class),
        tag(owner | MagazineOffset(of_class)) {}

  void* At(size_t block) const {
    return reinterpret_cast<void*>(start + block * BlockBytes(size_class));
  }

  Slab* slab;
  uintptr_t start;
  SizeClass size_class;
  Tag tag;
};

class RemoteBatchTest : public testing::Test {
 protected:
  using Word = RemoteBatch::Word;
  using Held = std::set<std::pair<Slab*, size_t>>;

  bool TryAddToWord(const FakeSlab& of, size_t block) {
    return batch_.TryAddToWord(of.At(block), of.slab, of.tag);
  }
  bool Add(const FakeSlab& to, size_t block, Word* displaced) {
    return batch_.Add(to.slab, to.At(block), block, to.size_class, to.tag,
                      displaced);
  }
  // Expects that no word has to make way.
  void Add(const FakeSlab& to, size_t block) {
    Word displaced;
    EXPECT_TRUE(Add(to, block, &displaced));
    EXPECT_EQ(displaced.bits, 0u);
  }

  static void Note(const Word& word, Held* held) {
    for (size_t i = 0; i < 64; ++i) {
      if ((word.bits >> i & 1) == 0) continue;
      EXPECT_TRUE(held->insert({word.slab, word.index * 64 + i}).second);
    }
  }
  Held TakeAll() {
    Held held;
    batch_.Empty([&](const Word& word) {
      EXPECT_NE(word.bits, 0u);
      Note(word, &held);
    });
    return held;
  }

  RemoteBatch batch_;
  const FakeSlab small_{7, ClassOf(32)};
};

TEST_F(RemoteBatchTest, IsEmptyAtFirst) {
  EXPECT_FALSE(batch_.IsFull());
  EXPECT_FALSE(TryAddToWord(small_, 0));
  EXPECT_TRUE(TakeAll().empty());
}

// Granules that are nobody's have no descriptor, and an entry that is empty has
// no slab.
TEST_F(RemoteBatchTest, NoDescriptorIsNoSlab) {
  for (Tag tag : {kNoTag, kOwnerUnit, kRunTag, kHugeTag, ~Tag{0}}) {
    EXPECT_FALSE(batch_.TryAddToWord(small_.At(0), nullptr, tag));
  }
}

TEST_F(RemoteBatchTest, GathersTheBlocksOfAWord) {
  Add(small_, 3);
  for (size_t block : {0, 63, 62, 7}) EXPECT_TRUE(TryAddToWord(small_, block));
  Add(small_, 9);
  size_t words = 0;
  batch_.Empty([&](const Word& word) {
    ++words;
    EXPECT_EQ(word.slab, small_.slab);
    EXPECT_EQ(word.index, 0u);
    EXPECT_EQ(word.size_class, small_.size_class);
    EXPECT_EQ(word.bits, uint64_t{3} << 62 | 1 << 9 | 1 << 7 | 1 << 3 | 1);
  });
  EXPECT_EQ(words, 1u);
  EXPECT_FALSE(TryAddToWord(small_, 1)) << "still there";
  EXPECT_TRUE(TakeAll().empty());
}

TEST_F(RemoteBatchTest, AnotherWordOfTheSlabTakesThePlace) {
  Add(small_, 64);
  EXPECT_FALSE(TryAddToWord(small_, 63));
  EXPECT_FALSE(TryAddToWord(small_, 128));
  Word displaced;
  EXPECT_TRUE(Add(small_, 128, &displaced));
  EXPECT_EQ(displaced.slab, small_.slab);
  EXPECT_EQ(displaced.index, 1u);
  EXPECT_EQ(displaced.bits, 1u);
  EXPECT_EQ(TakeAll(), (Held{{small_.slab, 128}}));
}

TEST_F(RemoteBatchTest, AnotherSlabOfTheClassTakesThePlace) {
  const FakeSlab other(8, small_.size_class);
  Add(small_, 5);
  EXPECT_FALSE(TryAddToWord(other, 5));
  Word displaced;
  EXPECT_TRUE(Add(other, 5, &displaced));
  EXPECT_EQ(displaced.slab, small_.slab);
  EXPECT_EQ(TakeAll(), (Held{{other.slab, 5}}));
}

TEST_F(RemoteBatchTest, AHeldBlockIsRefused) {
  Add(small_, 5);
  EXPECT_FALSE(TryAddToWord(small_, 5));
  Word displaced;
  EXPECT_FALSE(Add(small_, 5, &displaced));
  EXPECT_EQ(displaced.bits, 0u);
  EXPECT_EQ(TakeAll(), (Held{{small_.slab, 5}}));
}

TEST_F(RemoteBatchTest, WhatIsNoBlockIsRefused) {
  const FakeSlab slab(9, ClassOf(112));
  const size_t blocks = SlabBlocks(slab.size_class);
  const size_t first_of_word = blocks / 64 * 64;
  Add(slab, first_of_word);
  EXPECT_TRUE(TryAddToWord(slab, blocks - 1));
  EXPECT_FALSE(TryAddToWord(slab, blocks)) << "behind the last";
  const auto* inside = static_cast<char*>(slab.At(first_of_word + 1)) + 16;
  EXPECT_FALSE(batch_.TryAddToWord(inside, slab.slab, slab.tag));
  EXPECT_EQ(TakeAll().size(), 2u);
}

// A thread that frees what another allocated meets all classes in turn.
TEST_F(RemoteBatchTest, ClassesOfOneOwnerHavePlacesOfTheirOwn) {
  for (Tag owner = kOwnerUnit; owner < 200 * kOwnerUnit; owner += kOwnerUnit) {
    Held all;
    for (SizeClass c = kEightByteClass; c < kFastClasses; ++c) {
      const FakeSlab slab(c, c, owner);
      if (all.size() == 30) TakeAll();  // Full otherwise.
      Add(slab, 1);
      all.insert({slab.slab, 1});
    }
    TakeAll();
  }
}

TEST_F(RemoteBatchTest, OwnersHaveDifferentPlacesForAClass) {
  for (Tag i = 1; i <= 7; ++i) {
    Add(FakeSlab(i, ClassOf(64), i * kOwnerUnit), 0);
  }
  EXPECT_EQ(TakeAll().size(), 7u);
}

TEST_F(RemoteBatchTest, IsFullWithItsMostBytes) {
  const SizeClass c = ClassOf(1024);
  const FakeSlab slab(3, c);
  const size_t most = RemoteBatch::kMostBytes / BlockBytes(c);
  ASSERT_EQ(most, 64u);
  Add(slab, 0);
  for (size_t block = 1; block < most - 1; ++block) {
    ASSERT_TRUE(TryAddToWord(slab, block));
  }
  EXPECT_FALSE(TryAddToWord(slab, most - 1)) << "the last one is for Add()";
  EXPECT_FALSE(batch_.IsFull());
  Add(slab, most - 1);
  EXPECT_TRUE(batch_.IsFull());
  EXPECT_EQ(TakeAll().size(), most);
  EXPECT_FALSE(batch_.IsFull());
}

TEST_F(RemoteBatchTest, ARepairKeepsWhatIsHeldAndCountsItAnew) {
  const FakeSlab large(3, ClassOf(1024));
  Add(large, 0);
  Word displaced;
  for (size_t block = 64; block < 64 + 60; ++block) {
    EXPECT_TRUE(Add(FakeSlab(block, ClassOf(1024)), 0, &displaced));
  }
  batch_.RepairAfterFork();
  // Of what was displaced nothing counts any more.
  for (size_t block = 1; block < 60; ++block) {
    ASSERT_TRUE(Add(FakeSlab(123, ClassOf(1024)), block, &displaced));
  }
  EXPECT_FALSE(batch_.IsFull());
  EXPECT_EQ(TakeAll().size(), 60u);
  batch_.RepairAfterFork();
  EXPECT_TRUE(TakeAll().empty());
}

// Whatever is added is held, displaced or refused, once.
TEST_F(RemoteBatchTest, AgreesWithASet) {
  std::mt19937_64 random(TestSeed());
  Held held;
  for (int step = 0; step < 200000; ++step) {
    const SizeClass c = 2 + random() % 6;
    const Tag owner = (1 + random() % 8) * kOwnerUnit;
    const FakeSlab slab(1 + c * 100 + owner / kOwnerUnit * 3 + random() % 2, c,
                        owner);
    const size_t block = random() % (2 * 64);
    const bool is_held = held.count({slab.slab, block}) != 0;
    if (TryAddToWord(slab, block)) {
      ASSERT_FALSE(is_held);
      held.insert({slab.slab, block});
    } else {
      Word displaced;
      ASSERT_EQ(Add(slab, block, &displaced), !is_held);
      for (size_t i = 0; i < 64; ++i) {
        if ((displaced.bits >> i & 1) == 0) continue;
        ASSERT_EQ(held.erase({displaced.slab, displaced.index * 64 + i}), 1u);
      }
      if (!is_held) held.insert({slab.slab, block});
    }
    if (batch_.IsFull()) {
      ASSERT_EQ(TakeAll(), held);
      held.clear();
    }
  }
  EXPECT_EQ(TakeAll(), held);
}

}  // namespace
}  // namespace quarry
