#include "tcache/remote_batch.h"

#include <random>
#include <set>

#include "gtest/gtest.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// A slab that only has addresses: a batch touches no slab.
struct FakeSlab {
  FakeSlab(uintptr_t number, SizeClass of_class, Tag owner = kOwnerUnit)
      : start(number * kGranuleBytes),
        size_class(of_class),
        tag(owner | MagazineOffset(of_class)) {}

  void* At(size_t block) const {
    return reinterpret_cast<void*>(start + block * BlockBytes(size_class));
  }

  uintptr_t start;
  SizeClass size_class;
  Tag tag;
};

RemoteBlock Find(const FakeSlab& slab, size_t block) {
  RemoteBlock found;
  EXPECT_TRUE(RemoteBlock::Find(slab.At(block), slab.tag, &found));
  return found;
}

TEST(RemoteBlock, IsFoundInEveryClass) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const FakeSlab slab(9, c, 77 * kOwnerUnit);
    for (size_t block = 0; block < SlabBlocks(c); ++block) {
      const RemoteBlock found = Find(slab, block);
      ASSERT_EQ(found.tag, slab.tag);
      ASSERT_EQ(found.index, block);
      ASSERT_EQ(found.place, BlockWord::PlaceOf(slab.At(0), slab.tag, block));
      ASSERT_EQ(found.geometry().block_bytes, BlockBytes(c));
    }
  }
}

TEST(RemoteBlock, IsNotFoundWhereNoneStarts) {
  const auto is_found = [](const void* p, Tag tag) {
    RemoteBlock block;
    return RemoteBlock::Find(p, tag, &block);
  };
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const FakeSlab slab(9, c);
    char* const start = static_cast<char*>(slab.At(0));
    EXPECT_FALSE(is_found(start + 1, slab.tag));
    EXPECT_FALSE(is_found(start + BlockBytes(c) - 1, slab.tag));
    if (SlabBlocks(c) * BlockBytes(c) < kGranuleBytes) {
      EXPECT_FALSE(is_found(slab.At(SlabBlocks(c)), slab.tag)) << "behind all";
    }
  }
  EXPECT_FALSE(is_found(FakeSlab(9, kFirstClass).At(0), kNoTag));
}

class RemoteBatchTest : public testing::Test {
 protected:
  using Held = std::set<void*>;

  bool TryAddToWord(const FakeSlab& to, size_t block) {
    return batch_.TryAddToWord(Find(to, block));
  }
  bool Add(const FakeSlab& to, size_t block, BlockWord* displaced) {
    return batch_.Add(Find(to, block), displaced);
  }
  // Expects that no word has to make way.
  void Add(const FakeSlab& to, size_t block) {
    BlockWord displaced{};
    EXPECT_TRUE(Add(to, block, &displaced));
    EXPECT_EQ(displaced.bits, 0u);
  }

  static Held BlocksOf(BlockWord word) {
    Held blocks;
    for (; word.bits != 0; word.bits &= word.bits - 1) {
      blocks.insert(word.first_block());
    }
    return blocks;
  }
  Held TakeAll() {
    Held held;
    batch_.Empty([&](const BlockWord& word) {
      EXPECT_NE(word.bits, 0u);
      for (void* p : BlocksOf(word)) EXPECT_TRUE(held.insert(p).second);
    });
    return held;
  }

  RemoteBatch batch_;
  const FakeSlab small_{7, ClassOf(32)};
};

TEST_F(RemoteBatchTest, IsEmptyAtFirst) {
  EXPECT_FALSE(batch_.IsFull());
  batch_.Verify();
  EXPECT_FALSE(TryAddToWord(small_, 0));
  EXPECT_TRUE(TakeAll().empty());
  EXPECT_EQ(batch_.frees(), 0u);
}

TEST_F(RemoteBatchTest, GathersTheBlocksOfAWord) {
  Add(small_, 3);
  for (size_t block : {0, 63, 62, 7, 9}) {
    EXPECT_TRUE(TryAddToWord(small_, block));
  }
  size_t words = 0;
  batch_.Empty([&](const BlockWord& word) {
    ++words;
    EXPECT_EQ(word.slab_start(), small_.At(0));
    EXPECT_EQ(word.word(), 0u);
    EXPECT_EQ(word.size_class(), small_.size_class);
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
  BlockWord displaced{};
  EXPECT_TRUE(Add(small_, 128, &displaced));
  EXPECT_EQ(BlocksOf(displaced), (Held{small_.At(64)}));
  EXPECT_EQ(TakeAll(), (Held{small_.At(128)}));
}

TEST_F(RemoteBatchTest, AnotherSlabOfTheClassTakesThePlace) {
  const FakeSlab other(8, small_.size_class);
  Add(small_, 5);
  EXPECT_FALSE(TryAddToWord(other, 5));
  BlockWord displaced{};
  EXPECT_TRUE(Add(other, 5, &displaced));
  EXPECT_EQ(BlocksOf(displaced), (Held{small_.At(5)}));
  EXPECT_EQ(TakeAll(), (Held{other.At(5)}));
}

TEST_F(RemoteBatchTest, AHeldBlockIsRefused) {
  Add(small_, 5);
  EXPECT_FALSE(TryAddToWord(small_, 5));
  BlockWord displaced{};
  EXPECT_FALSE(Add(small_, 5, &displaced));
  EXPECT_EQ(displaced.bits, 0u);
  EXPECT_EQ(batch_.frees(), 1u);
  EXPECT_EQ(TakeAll(), (Held{small_.At(5)}));
}

TEST_F(RemoteBatchTest, CountsEveryFree) {
  Add(small_, 5);
  EXPECT_TRUE(TryAddToWord(small_, 6));
  batch_.CountFree();
  EXPECT_EQ(batch_.frees(), 3u);
  TakeAll();
  batch_.RepairAfterFork();
  EXPECT_EQ(batch_.frees(), 3u);
}

// A thread that frees what another allocated meets all classes in turn.
TEST_F(RemoteBatchTest, ClassesOfOneOwnerHavePlacesOfTheirOwn) {
  for (Tag owner = kOwnerUnit; owner < 200 * kOwnerUnit; owner += kOwnerUnit) {
    Held all;
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      const FakeSlab slab(c, c, owner);
      if (all.size() == 30) TakeAll();  // Full otherwise.
      Add(slab, 1);
      all.insert(slab.At(1));
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
  size_t blocks = 0;
  for (const FakeSlab& slab :
       {FakeSlab(3, ClassOf(1024)), FakeSlab(4, ClassOf(2048))}) {
    const size_t most = RemoteBatch::kMostBytes / 2 / BlockBytes(slab.size_class);
    EXPECT_FALSE(batch_.IsFull());
    Add(slab, 0);
    for (size_t block = 1; block < most; ++block) {
      EXPECT_FALSE(batch_.IsFull());
      ASSERT_TRUE(TryAddToWord(slab, block));
    }
    blocks += most;
  }
  EXPECT_TRUE(batch_.IsFull());
  EXPECT_EQ(TakeAll().size(), blocks);
  EXPECT_FALSE(batch_.IsFull());
}

TEST_F(RemoteBatchTest, ARepairKeepsWhatIsHeldAndCountsItAnew) {
  const FakeSlab last(123, ClassOf(1024));
  const FakeSlab other(124, ClassOf(2048));
  BlockWord displaced{};
  for (size_t number = 64; number <= 123; ++number) {
    EXPECT_TRUE(Add(FakeSlab(number, last.size_class), 0, &displaced));
  }
  batch_.RepairAfterFork();
  batch_.Verify();
  // Of what was displaced nothing counts any more.
  for (size_t block = 1; block < 64; ++block) {
    ASSERT_TRUE(TryAddToWord(last, block));
  }
  Add(other, 0);
  for (size_t block = 1; block < 32; ++block) {
    EXPECT_FALSE(batch_.IsFull());
    ASSERT_TRUE(TryAddToWord(other, block));
  }
  EXPECT_TRUE(batch_.IsFull());
  batch_.Verify();
  EXPECT_EQ(TakeAll().size(), 64u + 32u);
  batch_.RepairAfterFork();
  EXPECT_TRUE(TakeAll().empty());
}

// Its thread may be gone at any moment of a change.
TEST_F(RemoteBatchTest, ARepairForgetsAnEntryThatWasBeingWritten) {
  const FakeSlab other(8, ClassOf(48));
  Add(small_, 5);
  Add(other, 6);
  for (const BlockWord& entry : batch_.entries()) {
    if (entry.bits != 0 && entry.slab_start() == small_.At(0)) {
      const_cast<BlockWord&>(entry).bits = 0;
    }
  }
  batch_.RepairAfterFork();
  batch_.Verify();
  EXPECT_FALSE(TryAddToWord(small_, 7));
  Add(small_, 5);
  batch_.Verify();
  EXPECT_EQ(TakeAll(), (Held{small_.At(5), other.At(6)}));
}

// With its owner a slab's tag changes, and the tag leads to the entry.
TEST_F(RemoteBatchTest, ASlabThatChangesHandsMayHaveTwoEntries) {
  const FakeSlab later(7, small_.size_class, 2 * kOwnerUnit);
  Add(small_, 5);
  Add(later, 6);
  batch_.Verify();
  EXPECT_EQ(TakeAll(), (Held{small_.At(5), small_.At(6)}));
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
    void* const p = slab.At(block);
    const bool is_held = held.count(p) != 0;
    if (TryAddToWord(slab, block)) {
      ASSERT_FALSE(is_held);
      held.insert(p);
    } else {
      BlockWord displaced{};
      ASSERT_EQ(Add(slab, block, &displaced), !is_held);
      for (void* other : BlocksOf(displaced)) ASSERT_EQ(held.erase(other), 1u);
      if (!is_held) held.insert(p);
    }
    if (batch_.IsFull()) {
      batch_.Verify();
      ASSERT_EQ(TakeAll(), held);
      batch_.Verify();
      held.clear();
    }
  }
  EXPECT_EQ(TakeAll(), held);
}

}  // namespace
}  // namespace quarry
