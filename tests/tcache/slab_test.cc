#include "tcache/slab.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <deque>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "tests/arena/resident_pages.h"
#include "tests/arena/test_seed.h"
#include "tests/tcache/mark_freed.h"
#include "tests/tcache/test_slab.h"

namespace quarry {
namespace {

using Mark = RemoteBitmap::Mark;

class EveryClass : public testing::TestWithParam<SizeClass> {};

INSTANTIATE_TEST_SUITE_P(, EveryClass,
                         testing::Range(kEightByteClass, kClasses),
                         [](const auto& info) {
                           return std::to_string(BlockBytes(info.param)) +
                                  "Bytes";
                         });

TEST_P(EveryClass, StartsEmpty) {
  TestSlab slab(GetParam());
  EXPECT_EQ(slab->size_class(), GetParam());
  EXPECT_EQ(slab->block_bytes(), BlockBytes(GetParam()));
  EXPECT_EQ(slab->blocks(), SlabBlocks(GetParam()));
  EXPECT_EQ(slab->used(), 0u);
  EXPECT_EQ(slab->free_blocks(), slab->blocks());
  EXPECT_EQ(slab->owner.load(), nullptr);
  EXPECT_TRUE(slab->remote.IsEmpty());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(slab->start()) % kGranuleBytes, 0u);
  EXPECT_EQ(slab->arena(), &ArenaAt(0));
  slab->Verify();
}

TEST_P(EveryClass, FreshBlocksFollowEachOtherAndEndWithTheirPage) {
  TestSlab slab(GetParam());
  char* expected = slab->start();
  while (slab->free_blocks() > 0) {
    const std::vector<char*> blocks = slab.Take(TestSlab::kAll);
    ASSERT_FALSE(blocks.empty());
    for (char* block : blocks) {
      ASSERT_EQ(block, expected);
      expected += slab->block_bytes();
    }
    // All begin on one page, and none is left that does.
    const auto page_of = [](const char* p) {
      return reinterpret_cast<uintptr_t>(p) / PageBytes();
    };
    ASSERT_EQ(page_of(blocks.front()), page_of(blocks.back()));
    if (slab->free_blocks() > 0) {
      ASSERT_NE(page_of(expected), page_of(blocks.back()));
    }
    slab->Verify();
  }
  EXPECT_EQ(slab->used(), slab->blocks());
  EXPECT_LE(expected, slab->start() + kSlabBytes);
  EXPECT_TRUE(slab.Take(1).empty());
}

// Whatever is free: exactly the pages that no block in use touches are zero
// afterwards, and everything in use is as it was.
TEST_P(EveryClass, ThePagesThatHoldFreeBlocksOnlyCanGoBack) {
  std::mt19937_64 random(TestSeed());
  TestSlab slab(GetParam());
  const std::vector<char*> all = slab.TakeAll();
  const size_t bytes = slab->block_bytes();
  for (const uint64_t one_in : {2, 5, 40}) {
    for (char* block : all) {
      if (slab->IsFree(slab->IndexOf(block))) continue;
      memset(block, 0x55, bytes);
      // The last stays, so that no block is fresh again.
      if (block != all.back() && random() % one_in != 0) {
        ASSERT_TRUE(slab->PutBlock(slab->IndexOf(block)));
      }
    }
    std::set<uintptr_t> pages_in_use;
    for (char* block : all) {
      if (slab->IsFree(slab->IndexOf(block))) continue;
      const auto start = reinterpret_cast<uintptr_t>(block);
      for (uintptr_t page = start / PageBytes();
           page <= (start + bytes - 1) / PageBytes(); ++page) {
        pages_in_use.insert(page);
      }
    }
    slab->PurgeFreePages();
    slab->Verify();
    for (char* block : all) {
      const bool is_free = slab->IsFree(slab->IndexOf(block));
      for (size_t i = 0; i < bytes; i += 16) {
        const bool on_used_page = pages_in_use.contains(
            reinterpret_cast<uintptr_t>(block + i) / PageBytes());
        if (!is_free) {
          ASSERT_EQ(block[i], 0x55);
        } else if (!on_used_page) {
          ASSERT_EQ(block[i], 0);
        }
      }
    }
    // All are taken again, for the next share.
    while (slab->free_blocks() > 0) slab.Take(TestSlab::kAll);
  }
}

TEST(Slab, IdlePagesGoBackOnceAfterSomeLooks) {
  TestSlab slab(ClassOf(PageBytes()));
  const std::vector<char*> all = slab.TakeAll();
  for (char* block : all) memset(block, 0x55, PageBytes());
  const auto put = [&](size_t i) {
    ASSERT_TRUE(slab->PutBlock(slab->IndexOf(all[i])));
  };
  put(1);
  put(3);
  uint8_t pass = 0;
  const auto look = [&](uint8_t looks) {
    const Slab::Look look = slab->LookForIdlePages(++pass, looks);
    EXPECT_EQ(slab->pass(), pass);
    return look;
  };
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(look(3).is_done) << "it has only just changed";
  }
  EXPECT_EQ(all[1][0], 0x55);
  const Slab::Look last = look(3);
  EXPECT_TRUE(last.is_done);
  EXPECT_EQ(last.purges, 2u);
  EXPECT_EQ(all[1][0], 0);
  EXPECT_EQ(all[2][0], 0x55);
  // Not again, until something has changed.
  EXPECT_EQ(look(3).purges, 0u);
  EXPECT_TRUE(look(0).is_done);
  put(5);
  EXPECT_FALSE(look(3).is_done);
  EXPECT_EQ(look(0).purges, 3u) << "at once, when asked so";
  slab->ForgetPass();
  EXPECT_EQ(slab->pass(), 0u);
}

TEST_P(EveryClass, ThePagesBehindTheLastUsedBlockCanGoBack) {
  if (SlabBlocks(GetParam()) == 1) return;  // There is nothing behind it.
  TestSlab slab(GetParam());
  const std::vector<char*> all = slab.TakeAll();
  EXPECT_EQ(slab->PurgeFreePages(), 0u) << "nothing is free";
  for (char* block : all) memset(block, 0x55, slab->block_bytes());
  // All but the first go back, and with them most pages.
  for (size_t i = 1; i < all.size(); ++i) {
    ASSERT_TRUE(slab->PutBlock(slab->IndexOf(all[i])));
  }
  EXPECT_EQ(slab->PurgeFreePages(), 1u);
  slab->Verify();
  EXPECT_EQ(slab->used(), 1u);
  EXPECT_EQ(all[0][0], 0x55);
  EXPECT_EQ(all.back()[slab->block_bytes() - 1], 0) << "was given back";
  EXPECT_EQ(slab->PurgeFreePages(), 0u) << "there is nothing more";
  // They are fresh again, and all there.
  std::vector<char*> again = slab.TakeAll();
  EXPECT_EQ(again, std::vector<char*>(all.begin() + 1, all.end()));
  slab->Verify();
}

TEST_P(EveryClass, KnowsWhetherItsNextBlockIsResident) {
  TestSlab slab(GetParam());
  EXPECT_FALSE(slab->NextIsResident()) << "nothing was ever given out";
  std::vector<char*> blocks;
  for (size_t i = 0; i < std::min<size_t>(slab->blocks(), 2); ++i) {
    blocks.push_back(slab.Take(1).front());
    EXPECT_FALSE(slab->NextIsResident());
  }
  // Empty in the end, so that both are fresh again, and still resident.
  for (char* block : blocks) {
    slab->UpdateFullness();
    ASSERT_TRUE(slab->PutBlock(slab->IndexOf(block)));
    EXPECT_TRUE(slab->NextIsResident());
  }
  slab->UpdateFullness();
  for (char* block : blocks) {
    EXPECT_TRUE(slab->NextIsResident());
    EXPECT_EQ(slab.Take(1).front(), block);
  }
  EXPECT_FALSE(slab->NextIsResident());
}

TEST_P(EveryClass, KnowsItsBlocks) {
  TestSlab slab(GetParam());
  const std::vector<char*> first = slab.Take(1);
  ASSERT_EQ(first.size(), 1u);
  for (size_t i = 0; i < slab->blocks(); ++i) {
    char* const block = slab->BlockAt(i);
    ASSERT_EQ(slab->IndexOf(block), i);
    ASSERT_EQ(slab->IndexOf(block + slab->block_bytes() - 1), i);
    ASSERT_EQ(slab->IsGivenOut(block), i == 0);
    ASSERT_FALSE(slab->IsGivenOut(block + 1));
    ASSERT_FALSE(slab->IsFree(i));
    ASSERT_EQ(Slab::Of(block), &*slab);
  }
  for (char* tail = slab->BlockAt(slab->blocks());
       tail < slab->start() + kSlabBytes; tail += 8) {
    ASSERT_GE(slab->IndexOf(tail), slab->blocks());
    ASSERT_FALSE(slab->IsGivenOut(tail));
  }
}

TEST_P(EveryClass, FreedBlocksAreServedAgainLowestFirstBeforeFreshOnes) {
  TestSlab slab(GetParam());
  std::vector<char*> taken;
  while (taken.size() < slab->blocks() / 2 + 1) {
    taken.push_back(slab.Take(1).front());
  }
  std::vector<char*> freed;
  for (size_t i = 0; i + 1 < taken.size(); i += 2) freed.push_back(taken[i]);
  for (size_t i = freed.size(); i-- > 0;) {
    ASSERT_TRUE(slab->PutBlock(slab->IndexOf(freed[i])));
    ASSERT_TRUE(slab->IsFree(slab->IndexOf(freed[i])));
  }
  slab->Verify();
  EXPECT_EQ(slab.Take(freed.size()), freed);
  slab->Verify();
}

TEST_P(EveryClass, WhenEmptyBeginsAgainAtItsFirstBlock) {
  TestSlab slab(GetParam());
  const std::vector<char*> all = slab.TakeAll();
  for (char* block : all) {
    slab->UpdateFullness();
    ASSERT_TRUE(slab->PutBlock(slab->IndexOf(block)));
  }
  EXPECT_EQ(slab->used(), 0u);
  slab->UpdateFullness();
  EXPECT_FALSE(slab->IsGivenOut(all[0]));
  slab->Verify();
  EXPECT_EQ(slab.Take(1).front(), slab->start());
  EXPECT_FALSE(slab->PutBlock(1)) << "was not given out since";
}

TEST_P(EveryClass, ABlockPutTwiceIsRefused) {
  TestSlab slab(GetParam());
  const size_t taken = std::min<size_t>(slab->blocks(), 2);
  for (size_t i = 0; i < taken; ++i) slab.Take(1);
  EXPECT_TRUE(slab->PutBlock(taken - 1));
  EXPECT_FALSE(slab->PutBlock(taken - 1)) << "in the bitmap";
  EXPECT_FALSE(slab->PutBlock(taken)) << "fresh";
  EXPECT_FALSE(slab->PutBlock(slab->blocks() - 1));
  EXPECT_EQ(slab->used(), taken - 1);
  slab->Verify();
}

TEST_P(EveryClass, FullnessGoesByFourths) {
  TestSlab slab(GetParam());
  const size_t blocks = slab->blocks();
  const size_t fourth = (blocks + 3) / 4;
  const auto expected = [&](size_t used) {
    if (used == 0) return Slab::kEmpty;
    if (used == blocks) return Slab::kFull;
    if (used >= 3 * fourth) return Slab::kThreeFourths;
    if (used >= 2 * fourth) return Slab::kHalf;
    if (used >= fourth) return Slab::kFourth;
    return Slab::kSparse;
  };
  slab->UpdateFullness();
  const auto check = [&] {
    const Slab::Fullness before = slab->fullness();
    const bool has_risen = slab->FullnessHasRisen();
    const bool has_fallen = slab->FullnessHasFallen();
    slab->UpdateFullness();
    ASSERT_EQ(slab->fullness(), expected(slab->used())) << slab->used();
    // The fuller, the lower.
    ASSERT_EQ(has_risen, before > slab->fullness()) << slab->used();
    ASSERT_EQ(has_fallen, before < slab->fullness()) << slab->used();
    ASSERT_FALSE(slab->FullnessHasRisen());
    ASSERT_FALSE(slab->FullnessHasFallen());
  };
  while (slab->free_blocks() > 0) {
    slab.Take(1);
    check();
  }
  for (size_t i = 0; i < blocks; ++i) {
    ASSERT_TRUE(slab->PutBlock(i));
    check();
  }
  // From one end to the other at once.
  slab.TakeAll();
  check();
  ASSERT_EQ(MarkFreed(&*slab, 0), Mark::kFirst);
  for (size_t i = 1; i < blocks; ++i) {
    ASSERT_EQ(MarkFreed(&*slab, i), Mark::kAdded);
  }
  EXPECT_EQ(slab->Drain(), blocks);
  check();
  slab->Verify();
}

// Where they are few, on the line that a marking thread has in hand.
TEST_P(EveryClass, FewRemoteWordsLieOnTheSecondLine) {
  constexpr size_t kLineBytes = 64;
  TestSlab slab(GetParam());
  std::atomic<uint64_t>* const words =
      Slab::RemoteWords(&*slab, Slab::kGeometry[GetParam()]);
  const auto offset = static_cast<size_t>(reinterpret_cast<char*>(words) -
                                          reinterpret_cast<char*>(&*slab));
  if (slab->blocks() <= 4 * 64) {
    EXPECT_EQ(offset + 4 * sizeof(uint64_t), 2 * kLineBytes);
  } else {
    EXPECT_GE(offset, 3 * kLineBytes);
    EXPECT_EQ(offset % kLineBytes, 0u);
  }
  // They are the bitmap's, from the first to the last.
  slab.TakeAll();
  const std::set<size_t> ends = {0, slab->blocks() - 1};
  for (size_t block : ends) {
    (void)slab->remote.MarkWord(words, block / 64, uint64_t{1} << (block % 64));
    EXPECT_TRUE(slab->remote.IsMarked(block));
  }
  EXPECT_EQ(slab->Drain(), ends.size());
  slab->Verify();
}

// Against the sets of blocks in use and of those marked by other threads.
TEST_P(EveryClass, AgreesWithAModel) {
  std::mt19937_64 random(TestSeed());
  TestSlab slab(GetParam());
  std::set<size_t> used;
  std::set<size_t> marked;
  size_t highest = 0;  // Blocks from here on were not given out.
  const auto pick = [&](const std::set<size_t>& from) {
    auto at = from.lower_bound(random() % slab->blocks());
    return at != from.end() ? *at : *from.begin();
  };
  const auto release = [&](const std::set<size_t>& blocks) {
    for (size_t block : blocks) used.erase(block);
    slab->UpdateFullness();
    if (used.empty()) highest = 0;
  };
  size_t bias = 0;
  for (int step = 0; step < 2000; ++step) {
    if (step % 200 == 0) bias = random() % 5;
    const size_t choice = random() % 10;
    if (choice < 3 + bias) {
      const size_t wanted = random() % 40 + 1;
      const bool any_free = used.size() < slab->blocks();
      const bool any_put = used.size() < highest;
      size_t lowest = 0;
      for (char* p : slab.Take(wanted)) {
        const size_t block = slab->IndexOf(p);
        ASSERT_EQ(slab->BlockAt(block), p);
        ASSERT_GE(block, lowest) << "lowest address first";
        ASSERT_EQ(block >= highest, !any_put);
        ASSERT_TRUE(used.insert(block).second);
        lowest = block + 1;
      }
      ASSERT_EQ(lowest != 0, any_free);
      if (lowest > highest) highest = lowest;
      slab->UpdateFullness();
    } else if (choice < 8) {
      for (size_t n = random() % 40; n > 0 && !used.empty(); --n) {
        const size_t block = pick(used);
        if (marked.count(block) != 0) {
          ASSERT_EQ(MarkFreed(&*slab, block), Mark::kAlreadyFree);
        } else if (random() % 2 == 0) {
          ASSERT_EQ(MarkFreed(&*slab, block),
                    marked.empty() ? Mark::kFirst : Mark::kAdded);
          marked.insert(block);
        } else {
          ASSERT_TRUE(slab->PutBlock(block));
          release({block});
        }
      }
    } else if (choice == 8) {
      ASSERT_EQ(random() % 2 == 0 ? slab->Drain() : slab->DrainAll(),
                marked.size());
      release(marked);
      marked.clear();
    } else {
      const size_t block = random() % slab->blocks();
      if (used.count(block) == 0) {
        ASSERT_FALSE(slab->PutBlock(block));
      }
    }
    ASSERT_EQ(slab->used(), used.size());
    if (step % 50 != 0) continue;
    slab->Verify();
    for (size_t block = 0; block < slab->blocks(); ++block) {
      ASSERT_EQ(slab->IsFree(block),
                block < highest && used.count(block) == 0);
      ASSERT_EQ(slab->remote.IsMarked(block), marked.count(block) != 0);
    }
  }
  slab->Drain();
}

TEST(Slab, DrainTakesInWhatOtherThreadsFreed) {
  TestSlab slab(ClassOf(48));
  while (slab->used() < 200) slab.Take(200 - slab->used());
  ASSERT_EQ(MarkFreed(&*slab, 3), Mark::kFirst);
  ASSERT_EQ(MarkFreed(&*slab, 130), Mark::kAdded);
  EXPECT_EQ(slab->used(), 200u);
  EXPECT_EQ(slab->Drain(), 2u);
  EXPECT_EQ(slab->used(), 198u);
  EXPECT_TRUE(slab->IsFree(3));
  EXPECT_TRUE(slab->IsFree(130));
  EXPECT_EQ(slab->Drain(), 0u);
  slab->Verify();
  EXPECT_EQ(slab.Take(9), (std::vector<char*>{slab->BlockAt(3),
                                              slab->BlockAt(130)}));
}

using SlabDeathTest = testing::Test;

std::string DoubleFreeText(Slab& slab, size_t block) {
  char text[200];
  snprintf(text, sizeof(text),
           "quarry: double free of %p (class 48, slab %p), aborting\n",
           static_cast<void*>(slab.BlockAt(block)),
           static_cast<void*>(slab.start()));
  return text;
}

TEST(SlabDeathTest, ARemoteFreeOfABlockInTheBitmapIsFoundByTheDrain) {
  TestSlab slab(ClassOf(48));
  slab.Take(80);
  ASSERT_TRUE(slab->PutBlock(70));
  EXPECT_EXIT(
      {
        (void)MarkFreed(&*slab, 69);
        (void)MarkFreed(&*slab, 70);
        slab->Drain();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(*slab, 70)));
}

// The bitmap has no such word: nothing of it may be read.
TEST(SlabDeathTest, AWordBehindTheLastHoldsNoBlocks) {
  TestSlab slab(kEightByteClass);
  slab.TakeAll();
  const size_t words = kGranuleBytes / BlockBytes(kEightByteClass) / 64;
  ASSERT_LT(slab->blocks(), words * 64);
  EXPECT_EXIT(slab->PutWord(words - 1, 2, 1),
              testing::KilledBySignal(SIGABRT), "double free");
}

TEST(SlabDeathTest, ARemoteFreeOfAFreshBlockIsFoundByTheDrain) {
  TestSlab slab(ClassOf(48));
  ASSERT_EQ(slab.Take(70).size(), 70u);
  for (size_t block : {size_t{70}, size_t{127}, size_t{128}, size_t{1000}}) {
    EXPECT_EXIT(
        {
          (void)MarkFreed(&*slab, 69);
          (void)MarkFreed(&*slab, block);
          slab->Drain();
        },
        testing::KilledBySignal(SIGABRT),
        testing::Eq(DoubleFreeText(*slab, block)));
  }
}

TEST(SlabDeathTest, VerifyFindsAWrongDescriptor) {
  TestSlab slab(ClassOf(48));
  EXPECT_EXIT(
      {
        PageMap::Set(slab->start(), 1, kRunTag, nullptr);
        slab->Verify();
      },
      testing::KilledBySignal(SIGABRT), "check failed");
}

// Of one class alone: where the system has no huge page, the arena does not ask for
// the next before much more is in use.
TEST(Slab, OfAGrownHeapLiesOnAHugePage) {
  Arena& arena = ArenaAt(0);
  auto* const large = arena.Allocate(Arena::kGrownBytes / PageBytes(), 1);
  std::deque<TestSlab> slabs;
  size_t dirty_bytes = arena.FreeDirtyBytes();
  // A slab of which none is dirty begins a range of which none is.
  for (int i = 0; i < 64 && arena.FreeDirtyBytes() <= dirty_bytes; ++i) {
    dirty_bytes = arena.FreeDirtyBytes();
    slabs.emplace_back(kFirstClass, Filling::kFromLowEnd);
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(slabs.back()->start()) %
                kHugePageBytes, 0u);
  EXPECT_EQ(arena.FreeDirtyBytes() - dirty_bytes,
            kHugePageBytes - kSlabBytes);
  slabs.clear();
  arena.Deallocate(large);
  arena.Purge(0);
}

TEST(Slab, MakesFreshPagesResidentSoManyAtATime) {
  if (!CanPopulate()) GTEST_SKIP() << "the system cannot";

  const size_t pages_of_slab = kSlabBytes / PageBytes();
  for (const size_t pages : {size_t{1}, size_t{2}, Slab::kMostPopulatedPages}) {
    for (const SizeClass c : {kFirstClass, ClassOf(1000), ClassOf(PageBytes())}) {
      SCOPED_TRACE(testing::Message() << pages << " pages, class " << c);
      ArenaAt(0).Purge(0);
      TestSlab slab(c);
      slab->PopulateBy(pages);
      ASSERT_EQ(ResidentPages(slab->start(), kSlabBytes), 0u);
      const size_t most = std::min(pages, pages_of_slab);
      for (size_t page = 0; slab->free_blocks() > 0; ++page) {
        // All that begin on one page.
        slab.Take(TestSlab::kAll);
        EXPECT_EQ(ResidentPages(slab->start(), kSlabBytes), page / most * most + most);
      }

      // All of them go back, those too that nobody had yet.
      for (size_t i = 0; i < slab->blocks(); ++i) ASSERT_TRUE(slab->PutBlock(i));
      slab->PurgeFreePages();
      const size_t taken = slab.Take(TestSlab::kAll).size();
      for (size_t i = 0; i < taken; ++i) ASSERT_TRUE(slab->PutBlock(i));
      slab->PurgeFreePages();
      // One such page is not worth a call.
      EXPECT_EQ(ResidentPages(slab->start(), kSlabBytes), most == 2 ? 1u : 0u);
      slab.TakeAll();

      // Again after a purge.
      for (size_t i = 0; i < slab->blocks(); ++i) ASSERT_TRUE(slab->PutBlock(i));
      slab->PurgeFreePages();
      ASSERT_EQ(ResidentPages(slab->start(), kSlabBytes), 0u);
      slab.Take(TestSlab::kAll);
      EXPECT_EQ(ResidentPages(slab->start(), kSlabBytes), most);
    }
  }
}

// Of which the program may touch less than it asked for.
TEST(Slab, OfBlocksOfSeveralPagesMakesOneResidentForEach) {
  if (2 * PageBytes() > kSmallMaxBytes) GTEST_SKIP() << "no block has several pages";
  ArenaAt(0).Purge(0);
  TestSlab slab(ClassOf(2 * PageBytes()));
  slab->PopulateBy(Slab::kMostPopulatedPages);
  slab.TakeAll();
  EXPECT_EQ(ResidentPages(slab->start(), kSlabBytes), slab->blocks());
}

TEST(BlockList, KeepsTheOrder) {
  FreeBlock blocks[3];
  BlockList list;
  for (FreeBlock& block : blocks) list.Append(&block);
  EXPECT_EQ(list.Finish(), &blocks[0]);
  EXPECT_EQ(blocks[0].next, &blocks[1]);
  EXPECT_EQ(blocks[1].next, &blocks[2]);
  EXPECT_EQ(blocks[2].next, nullptr);
  EXPECT_EQ(BlockList().Finish(), nullptr);
}

}  // namespace
}  // namespace quarry
