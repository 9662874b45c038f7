// What threads that need new pages have of threads that wait.
#include <algorithm>
#include <csignal>
#include <cstring>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/cache_registry.h"
#include "tcache/remote_free.h"
#include "tcache/thread_cache.h"
#include "tcache/thread_life.h"
#include "tests/arena/test_seed.h"
#include "tests/tcache/blocks.h"

namespace quarry {
namespace {

const bool one_arena = (settings.arenas_max = 1, true);

constexpr size_t kBytes = 1024;
constexpr size_t kSlabs = 8;

// This thread, which needs slabs, and one that has some and waits.
class ThreadCacheLendTest : public testing::Test {
 protected:
  ThreadCacheLendTest() {
    maintenance_signal.FallAsleep();
    maintenance_signal.StayAwake();
    Free(Allocate(64));
    adoptions_before_ = thread_state.cache->counters().adoptions;
  }
  ~ThreadCacheLendTest() override {
    for (void* p : own_) FreeHereOrLater(p);
    for (void* p : kept_) FreeHereOrLater(p);
    (void)FlushRemoteFrees(thread_state.cache);
    worker_.Do([] { ThreadCache::FlushThread(); });
    VerifyAll();
    worker_.End();
    ThreadCache::FlushThread();
    VerifyAll();
    EXPECT_EQ(SlabBytesInUse(), 0u) << "a slab is lost";
  }

  // The other thread's blocks of `bytes`, so many bytes of them.
  std::vector<void*> AllocateByWorker(size_t bytes, size_t all_bytes) {
    std::vector<void*> blocks;
    worker_.Do([&] {
      for (size_t sum = 0; sum < all_bytes; sum += bytes) blocks.push_back(Allocate(bytes));
    });
    return blocks;
  }

  // Frees blocks of the calling thread, the first of them first, until the class is cold, and
  // then kNotes from the middle of the others, which are only noted. Returns these.
  static constexpr size_t kNotes = 4;
  static std::vector<void*> NoteSome(std::vector<void*>* blocks) {
    auto next = blocks->begin();
    while (next != blocks->end() && !TryPushCold(*next)) Free(*next++);
    blocks->erase(blocks->begin(), next == blocks->end() ? next : next + 1);
    if (blocks->size() < kNotes) return {};
    next = blocks->begin() + static_cast<ptrdiff_t>(blocks->size() / 2);
    const std::vector<void*> noted(next, next + kNotes);
    blocks->erase(next, next + kNotes);
    for (void* p : noted) EXPECT_TRUE(TryPushCold(p));
    return noted;
  }

  // Frees all but one in `each` of what the other thread has allocated.
  void FreeMost(const std::vector<void*>& blocks, size_t each) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i % each == 0) {
        kept_.push_back(blocks[i]);
      } else {
        FreeLater(blocks[i]);
      }
    }
    (void)FlushRemoteFrees(thread_state.cache);
  }

  // What is free and dirty would serve first.
  static void LeaveNoUsedPages() { ArenaAt(0).Purge(0); }

  // Allocates until the thread, which has a cache, has had so many slabs more, lent ones and
  // new ones.
  void AllocateSlabs(size_t bytes, size_t slabs) {
    const uint64_t before = SlabsHad();
    while (SlabsHad() < before + slabs) {
      LeaveNoUsedPages();
      own_.push_back(Allocate(bytes));
    }
  }
  static uint64_t SlabsHad() {
    const ThreadCache::Counters counters = thread_state.cache->counters();
    return counters.slabs_made + counters.adoptions;
  }
  // Of this test.
  uint64_t Adoptions() const {
    return thread_state.cache->counters().adoptions - adoptions_before_;
  }

  std::vector<void*> own_;   // Of this thread.
  std::vector<void*> kept_;  // Of the other, and not freed yet.
  Worker worker_;

 private:
  uint64_t adoptions_before_;
};

TEST_F(ThreadCacheLendTest, WhatIsFreeInSlabsOfAThreadThatWaitsServesBeforeNewPages) {
  const std::vector<void*> blocks = AllocateByWorker(kBytes, kSlabs * kSlabBytes);
  std::set<Slab*> slabs;
  for (void* p : blocks) slabs.insert(Slab::Of(p));
  FreeMost(blocks, 8);
  ASSERT_FALSE(OwnerOf(kept_[0])->pending().IsEmpty());
  // It may come for them yet when they are first seen.
  AllocateSlabs(kBytes, 1);
  EXPECT_EQ(Adoptions(), 0u);
  AllocateSlabs(kBytes, kSlabs);
  EXPECT_GE(Adoptions(), kSlabs - 2);
  size_t lent = 0;
  for (void* p : own_) lent += slabs.count(Slab::Of(p));
  EXPECT_GT(lent, kSlabs * kSlabBytes / kBytes / 2);
  VerifyAll();
}

TEST_F(ThreadCacheLendTest, EmptySlabsServeAnyClass) {
  FreeMost(AllocateByWorker(kBytes, kSlabs * kSlabBytes), size_t{1} << 20);
  AllocateSlabs(64, 3);
  // But for what the other has in its magazine, and the slab of the block that is kept.
  EXPECT_GE(ArenaAt(0).statistics().free_dirty_bytes, (kSlabs - 3) * kSlabBytes);
}

TEST_F(ThreadCacheLendTest, AThreadThatComesForItsRemoteFreesKeepsItsSlabs) {
  for (size_t i = 0; i < 8; ++i) {
    FreeMost(AllocateByWorker(kBytes, kSlabs * kSlabBytes), 8);
    AllocateSlabs(kBytes, 1);
    worker_.Do([] { ThreadCache::FlushThread(); });
  }
  EXPECT_EQ(Adoptions(), 0u);
}

TEST_F(ThreadCacheLendTest, BlocksThatShareLinesAreNotLent) {
  constexpr size_t kSmallBytes = 64;
  FreeMost(AllocateByWorker(kSmallBytes, kSlabs * kSlabBytes), 8);
  AllocateSlabs(kSmallBytes, kSlabs);
  EXPECT_EQ(Adoptions(), 0u);
}

// Of classes that are not lent either way, only what is empty.
TEST_F(ThreadCacheLendTest, WhoNeedsSlabsOfOtherClassesLeavesWhatIsPartlyUsed) {
  FreeMost(AllocateByWorker(kBytes, kSlabs * kSlabBytes), 8);
  AllocateSlabs(64, kSlabs);
  EXPECT_EQ(CountOrphans(), 0u);
  for (void* p : kept_) EXPECT_NE(OwnerOf(p), nullptr);
}

TEST_F(ThreadCacheLendTest, AThreadThatRefillsKeepsItsSlabs) {
  FreeMost(AllocateByWorker(kBytes, kSlabs * kSlabBytes), 8);
  std::vector<void*> blocks;
  for (size_t i = 0; i < 8; ++i) {
    // Of another class, and not so often that it takes its remote frees in.
    worker_.Do([&] {
      for (size_t n = 0; n < 200; ++n) blocks.push_back(Allocate(16));
    });
    const bool has_drained = !OwnerOf(kept_[0])->pending().HasAny();
    AllocateSlabs(kBytes, 1);
    if (has_drained) break;
    EXPECT_EQ(Adoptions(), 0u);
  }
  worker_.Do([&] {
    for (void* p : blocks) Free(p);
  });
}

TEST_F(ThreadCacheLendTest, EachRemoteFreeIsCountedBeforeItIsDrained) {
  const auto counts = [] {
    uint64_t freed = RemoteFreesWithoutCache();
    uint64_t drained = 0;
    cache_registry.ForEach([&](ThreadCache* cache) {
      freed += cache->remote_batch().frees();
      drained += cache->counters().drained_blocks;
    });
    return std::pair(freed, drained);
  };
  ThreadCache::FlushThread();
  const auto [freed_before, drained_before] = counts();
  FreeMost(AllocateByWorker(kBytes, kSlabs * kSlabBytes), 8);
  AllocateSlabs(kBytes, 2 * kSlabs);
  // What it has at hand is others'.
  worker_.Do([] { ThreadCache::FlushThread(); });
  ThreadCache::FlushThread();
  const auto [freed, drained] = counts();
  EXPECT_GT(drained, drained_before);
  EXPECT_LE(drained - drained_before, freed - freed_before);
}

TEST_F(ThreadCacheLendTest, OthersAreNotAskedWhileThereAreUsedPages) {
  FreeMost(AllocateByWorker(kBytes, kSlabs * kSlabBytes), 8);
  for (size_t i = 0; i < 3 * kSlabBytes / kBytes; ++i) own_.push_back(Allocate(kBytes));
  ThreadCache::FlushThread();
  const uint64_t adoptions = Adoptions();
  // Slabs that come and go leave dirty pages.
  for (size_t round = 0; round < 4; ++round) {
    std::vector<void*> blocks;
    for (size_t i = 0; i < kSlabBytes / 512; ++i) blocks.push_back(Allocate(512));
    for (void* p : blocks) Free(p);
    ThreadCache::FlushThread();
  }
  EXPECT_LE(Adoptions(), adoptions + 1);
}

// What it has at hand is of slabs that are others' now.
TEST_F(ThreadCacheLendTest, TheOwnerGoesOnWithTheBlocksThatItHas) {
  std::vector<void*> blocks = AllocateByWorker(kBytes, kSlabs * kSlabBytes);
  // In its magazine.
  std::vector<void*> last(blocks.end() - 8, blocks.end());
  blocks.resize(blocks.size() - 8);
  worker_.Do([&] {
    for (void* p : last) Free(p);
  });
  FreeMost(blocks, 8);
  AllocateSlabs(kBytes, 2 * kSlabs);
  ASSERT_GE(Adoptions(), kSlabs - 2);
  std::set<void*> of_this_thread(own_.begin(), own_.end());
  std::vector<void*> again;
  worker_.Do([&] {
    for (size_t i = 0; i < 2 * kSlabBytes / kBytes; ++i) again.push_back(Allocate(kBytes));
    // Blocks of its own slabs, when it allocated them.
    for (size_t i = 0; i < kept_.size() / 2; ++i) FreeHereOrLater(kept_[i]);
  });
  kept_.erase(kept_.begin(), kept_.begin() + static_cast<ptrdiff_t>(kept_.size() / 2));
  for (void* p : again) EXPECT_EQ(of_this_thread.count(p), 0u);
  VerifyAll();
  for (void* p : last) EXPECT_NE(std::find(again.begin(), again.end(), p), again.end());
  worker_.Do([&] {
    for (void* p : again) FreeHereOrLater(p);
    ThreadCache::FlushThread();
  });
  VerifyAll();
}

// Of a cold class nothing is at hand, but frees are noted.
TEST_F(ThreadCacheLendTest, NotesOfLentBlocksGoToTheirNewOwners) {
  std::vector<void*> blocks = AllocateByWorker(kBytes, size_t{4} << 20);
  worker_.Do([&] { ASSERT_EQ(NoteSome(&blocks).size(), kNotes); });
  FreeMost(blocks, 8);
  AllocateSlabs(kBytes, 4 * kSlabs);
  ASSERT_GE(Adoptions(), kSlabs);
  worker_.Do([] { thread_state.cache->FlushNotes(); });
  VerifyAll();
}

// Nor are they the program's, as long as nobody has adopted their slab.
TEST_F(ThreadCacheLendTest, NotesOfLentBlocksAreCounted) {
  std::vector<void*> blocks = AllocateByWorker(kBytes, size_t{4} << 20);
  worker_.Do([&] { ASSERT_EQ(NoteSome(&blocks).size(), kNotes); });
  const auto out_of_reach = [&] {
    ThreadCache::ClassStatistics classes[kClasses] = {};
    worker_.Do([&] { thread_state.cache->AddStatistics(classes, true); });
    return classes[ClassOf(kBytes)].out_of_reach_blocks;
  };
  const size_t before = out_of_reach();
  ASSERT_GE(before, kNotes);
  FreeMost(blocks, 8);
  for (size_t i = 0; i < 4 * kSlabs && Adoptions() == 0; ++i) AllocateSlabs(kBytes, 1);
  ASSERT_EQ(Adoptions(), 1u) << "the first of those that were lent";
  EXPECT_EQ(out_of_reach(), before);
}

using ThreadCacheLendDeathTest = ThreadCacheLendTest;

TEST_F(ThreadCacheLendDeathTest, ANoteOfABlockWhoseSlabIsGoneIsFound) {
  if (kUnderTsan) GTEST_SKIP() << "it lets no forked child have threads";
  // Here this thread is the one that lends, for in the child of a fork there is no other.
  std::vector<void*> blocks;
  for (size_t i = 0; i < (size_t{2} << 20) / kBytes; ++i) blocks.push_back(Allocate(kBytes));
  const std::vector<void*> noted = NoteSome(&blocks);
  ASSERT_EQ(noted.size(), kNotes);
  EXPECT_EXIT(
      OnAnotherThread([&] {
        for (void* p : blocks) MarkFree(Slab::Of(p), p);
        for (void* p : noted) MarkFree(Slab::Of(p), p);  // Twice, so to say.
        Free(Allocate(64));
        AllocateSlabs(64, 4);  // Perhaps where these were.
      });
      QUARRY_CHECK(ClassOfTag(PageMap::TagOf(noted[0])) != ClassOf(kBytes));
      thread_state.cache->FlushNotes(), testing::KilledBySignal(SIGABRT),
      // Where the purges of AllocateSlabs() have unmapped it, the line goes on.
      "^quarry: free of " + Hex(noted[0]) + ", which Quarry did not allocate");
  own_ = blocks;
}

TEST_F(ThreadCacheLendDeathTest, ADoubleFreeOfALentBlockIsFound) {
  const std::vector<void*> blocks = AllocateByWorker(kBytes, kSlabs * kSlabBytes);
  FreeMost(blocks, 8);
  AllocateSlabs(kBytes, 2 * kSlabs);
  ASSERT_GE(Adoptions(), kSlabs - 2);
  void* lent = nullptr;
  for (void* p : kept_) {
    if (OwnerOf(p) == thread_state.cache) lent = p;
  }
  ASSERT_NE(lent, nullptr);
  // Here it is a block of this thread now.
  EXPECT_EXIT(
      {
        Free(lent);
        Free(lent);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(lent)));
}

// Threads that wait for each other, and free what any of them has allocated.
TEST_F(ThreadCacheLendTest, ThreadsThatReplaceEachOthersBlocksInTurnHaveThePagesOfOne) {
  const uint64_t seed = TestSeed();
  constexpr size_t kBlocks = 3000;
  std::vector<unsigned char*> table(kBlocks);
  std::vector<size_t> sizes(kBlocks);
  const auto put = [&](size_t i, size_t bytes) {
    auto* const p = static_cast<unsigned char*>(Allocate(bytes));
    memset(p, static_cast<int>(i & 0xff), bytes);
    table[i] = p;
    sizes[i] = bytes;
  };
  const auto take = [&](size_t i) {
    for (size_t at : {size_t{0}, sizes[i] / 2, sizes[i] - 1}) {
      ASSERT_EQ(table[i][at], i & 0xff) << "block " << i << " of seed " << seed;
    }
    FreeHereOrLater(table[i]);
  };
  size_t first_bytes = 0;
  {
    std::vector<Worker> workers(4);
    for (size_t turn = 0; turn < 16; ++turn) {
      workers[turn % workers.size()].Do([&] {
        std::mt19937_64 random(seed + turn);
        for (size_t n = 0; n < kBlocks; ++n) {
          const size_t i = turn == 0 ? n : random() % kBlocks;
          if (turn != 0) take(i);
          put(i, 16 + random() % 2000);
        }
        (void)FlushRemoteFrees(thread_state.cache);
      });
      VerifyAll();
      if (turn == 0) first_bytes = SlabBytesInUse();
    }
    // Without lending each of the four comes to have as much as the first.
    EXPECT_LT(SlabBytesInUse(), 3 * first_bytes);
    workers[0].Do([&] {
      for (size_t i = 0; i < kBlocks; ++i) take(i);
      ThreadCache::FlushThread();
    });
    for (Worker& worker : workers) worker.Do([] { ThreadCache::FlushThread(); });
  }
  VerifyAll();
}

}  // namespace
}  // namespace quarry
