#include "tcache/remote_free.h"

#include <atomic>
#include <csignal>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/thread_life.h"
#include "tests/arena/in_child.h"
#include "tests/tcache/blocks.h"

namespace quarry {
namespace {

const bool one_arena = (settings.arenas_max = 1, true);

constexpr size_t kBytes = 112;

TEST(RemoteFree, MarksTheBlockAndTellsTheOwner) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  Slab* const slab = Slab::Of(p);
  ThreadCache* const mine = thread_state.cache;
  const size_t used = slab->used();
  OnAnotherThread([&] {
    Free(p);
    Free(q);
    EXPECT_EQ(thread_state.cache, &no_cache) << "made for no reason";
  });
  EXPECT_TRUE(slab->remote.IsMarked(slab->IndexOf(p)));
  EXPECT_TRUE(slab->remote.IsMarked(slab->IndexOf(q)));
  EXPECT_EQ(slab->used(), used);
  EXPECT_FALSE(mine->pending().IsEmpty());
  const uint64_t drained = mine->counters().drained_blocks;
  ThreadCache::FlushThread();
  EXPECT_EQ(mine->counters().drained_blocks, drained + 2);
  EXPECT_TRUE(mine->pending().IsEmpty());
  EXPECT_EQ(SlabBytesInUse(), 0u);
  VerifyAll();
}

TEST(RemoteFree, ARefillServesTheBlocksAgain) {
  std::set<void*> blocks;
  while (blocks.size() < 1000) blocks.insert(Allocate(kBytes));
  OnAnotherThread([&] {
    for (void* p : blocks) Free(p);
  });
  const uint64_t slabs = thread_state.cache->counters().slabs_made;
  std::vector<void*> again;
  for (size_t i = 0; i < 1000; ++i) again.push_back(Allocate(kBytes));
  EXPECT_EQ(thread_state.cache->counters().slabs_made, slabs);
  VerifyAll();
  for (void* p : again) Free(p);
  ThreadCache::FlushThread();
  EXPECT_EQ(SlabBytesInUse(), 0u);
}

// While slabs have free blocks, refills leave the marks alone for a while, and
// not for ever.
TEST(RemoteFree, IsDrainedSeldomWhileOtherBlocksAreFree) {
  ThreadCache* const mine = thread_state.cache;
  std::vector<void*> blocks;
  for (int i = 0; i < 60000; ++i) blocks.push_back(Allocate(kBytes));
  // Most of them are in the slabs again, the rest on a page of its own.
  for (int i = 100; i < 60000; ++i) Free(blocks[static_cast<size_t>(i)]);
  ThreadCache::FlushThread();
  std::vector<void*> again;
  for (int i = 0; i < 100; ++i) again.push_back(Allocate(kBytes));
  OnAnotherThread([&] { Free(blocks[0]); });
  const uint64_t drained = mine->counters().drained_blocks;
  const uint64_t refills = mine->counters().refills;
  while (mine->counters().drained_blocks == drained) {
    ASSERT_LT(again.size(), 50000u) << "drained too late, or never";
    again.push_back(Allocate(kBytes));
  }
  const uint64_t passed = mine->counters().refills - refills;
  EXPECT_GT(passed, 1u);
  EXPECT_LE(passed, 17u);
  for (void* p : again) Free(p);
  for (size_t i = 1; i < 100; ++i) Free(blocks[i]);
  ThreadCache::FlushThread();
  EXPECT_EQ(SlabBytesInUse(), 0u);
}

TEST(RemoteFree, IsDrainedBeforeBlocksAreFresh) {
  // A page of them, with which the magazine is empty.
  const size_t bytes = 1024;
  std::set<void*> blocks;
  do {
    blocks.insert(Allocate(bytes));
  } while (thread_state.cache->MagazineBlocks(ClassOf(bytes)) > 0);
  OnAnotherThread([&] {
    for (void* p : blocks) Free(p);
  });
  std::vector<void*> again;
  for (size_t i = 0; i < blocks.size(); ++i) {
    again.push_back(Allocate(bytes));
    EXPECT_TRUE(blocks.contains(again.back())) << i;
  }
  for (void* p : again) Free(p);
  ThreadCache::FlushThread();
  EXPECT_EQ(SlabBytesInUse(), 0u);
}

// Lets another thread free `freed` of the last blocks when there are none at hand, and
// allocates one. Returns how many the refill took.
size_t RefillAfterRemoteFrees(std::vector<void*>* blocks, size_t bytes,
                              size_t freed) {
  const auto at_hand = [bytes] {
    return thread_state.cache->MagazineBlocks(ClassOf(bytes));
  };
  while (at_hand() > 0) blocks->push_back(Allocate(bytes));
  OnAnotherThread([&] {
    for (size_t i = 0; i < freed; ++i) {
      Free(blocks->back());
      blocks->pop_back();
    }
  });
  blocks->push_back(Allocate(bytes));
  return at_hand() + 1;
}

TEST(RemoteFree, SomeBlocksAreARefillWithoutFreshOnes) {
  // Until a refill takes 64 blocks, most of the slab fresh.
  std::vector<void*> blocks;
  while (blocks.size() < 200) blocks.push_back(Allocate(kBytes));
  EXPECT_EQ(RefillAfterRemoteFrees(&blocks, kBytes, 8), 8u);
  EXPECT_GT(RefillAfterRemoteFrees(&blocks, kBytes, 7), 7u) << "too few";
  for (void* p : blocks) Free(p);
  ThreadCache::FlushThread();
  EXPECT_EQ(SlabBytesInUse(), 0u);
}

TEST(RemoteFree, AKibibyteIsARefillWithoutFreshOnes) {
  // Until a refill takes 16 blocks, some of the slab fresh.
  std::vector<void*> blocks;
  while (blocks.size() < 70) blocks.push_back(Allocate(1024));
  EXPECT_EQ(RefillAfterRemoteFrees(&blocks, 1024, 1), 1u);
  EXPECT_GT(RefillAfterRemoteFrees(&blocks, 1024, 0), 1u);
  for (void* p : blocks) Free(p);
  ThreadCache::FlushThread();
  EXPECT_EQ(SlabBytesInUse(), 0u);
}

TEST(RemoteFree, WorksForEveryClass) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    std::vector<void*> blocks;
    for (int i = 0; i < 40; ++i) blocks.push_back(AllocateOfClass(c));
    OnAnotherThread([&] {
      for (void* p : blocks) {
        memset(p, 0xee, BlockBytes(c));
        Free(p);
      }
    });
    ThreadCache::FlushThread();
    EXPECT_EQ(SlabBytesInUse(), 0u) << BlockBytes(c);
  }
}

// What the freeing thread wrote happens before the next owner of the block
// writes: otherwise a data race.
TEST(RemoteFree, ABlockIsReusedAfterItsLastUse) {
  constexpr int kBlocks = 20000;
  std::atomic<int*> hand{nullptr};
  Free(Allocate(kBytes));
  std::thread other([&] {
    for (int i = 0; i < kBlocks;) {
      int* const p = hand.exchange(nullptr, std::memory_order_acquire);
      if (p == nullptr) {
        std::this_thread::yield();
        continue;
      }
      EXPECT_EQ(*p, i++);
      *p = -1;
      Free(p);
    }
  });
  for (int i = 0; i < kBlocks; ++i) {
    int* const p = static_cast<int*>(Allocate(kSmallMaxBytes));
    *p = i;
    while (hand.load(std::memory_order_relaxed) != nullptr) {
      std::this_thread::yield();
    }
    hand.store(p, std::memory_order_release);
  }
  other.join();
  ThreadCache::FlushThread();
  EXPECT_EQ(SlabBytesInUse(), 0u);
  VerifyAll();
}

// Many threads free the blocks of one owner, who drains all the while. A slab
// that were drained before it is unlinked from the pending stack would be
// pushed again while the owner still reads its link.
TEST(RemoteFree, NoBlockIsLostWhileTheOwnerDrains) {
  constexpr size_t kThreads = 3;
  constexpr size_t kSlots = 64;
  constexpr size_t kBlocks = 100000;
  std::atomic<void*> slots[kThreads][kSlots] = {};
  std::atomic<bool> stop{false};
  Free(Allocate(kBytes));
  std::vector<std::thread> threads;
  for (auto& own_slots : slots) {
    threads.emplace_back([&] {
      for (;;) {
        const bool last = stop.load(std::memory_order_acquire);
        for (std::atomic<void*>& slot : own_slots) {
          void* const p = slot.exchange(nullptr, std::memory_order_acquire);
          if (p != nullptr) Free(p);
        }
        if (last) return;
        std::this_thread::yield();
      }
    });
  }
  for (size_t i = 0; i < kBlocks; ++i) {
    // Few blocks to a slab, so that slabs come and go, or many.
    void* const p = Allocate(i % 2 == 0 ? kBytes : kSmallMaxBytes);
    std::atomic<void*>& slot = slots[i % kThreads][i / kThreads % kSlots];
    void* const previous = slot.exchange(p, std::memory_order_acq_rel);
    if (previous != nullptr) Free(previous);
    if (i % 1000 == 0) ThreadCache::FlushThread();
  }
  stop.store(true, std::memory_order_release);
  for (std::thread& thread : threads) thread.join();
  ThreadCache::FlushThread();
  EXPECT_EQ(SlabBytesInUse(), 0u);
  VerifyAll();
}

TEST(RemoteFree, IsCounted) {
  Free(Allocate(kBytes));
  const uint64_t without_cache = RemoteFreesWithoutCache();
  const uint64_t mine = thread_state.cache->remote_batch().frees();
  void* p;
  void* q;
  OnAnotherThread([&] {
    p = Allocate(kBytes);
    q = Allocate(kBytes);
  });
  Free(p);
  OnAnotherThread([&] { Free(q); });
  EXPECT_EQ(thread_state.cache->remote_batch().frees(), mine + 1);
  EXPECT_EQ(RemoteFreesWithoutCache(), without_cache + 1);
  ThreadCache::FlushThread();
}

TEST(RemoteFree, IsAccountedWhenTheOwnerExits) {
  Worker owner;
  void* p;
  owner.Do([&] { p = Allocate(kBytes); });
  Free(p);
  owner.End();
  EXPECT_EQ(SlabBytesInUse(), 0u);
  EXPECT_EQ(CountOrphans(), 0u);
}

// A thread that has a cache holds what it frees, and marks it later.
class FreeLaterTest : public testing::Test {
 protected:
  static constexpr size_t kFew = 20;

  FreeLaterTest() {
    for (void*& p : blocks_) p = Allocate(kBytes);
  }
  ~FreeLaterTest() override {
    ThreadCache::FlushThread();
    EXPECT_EQ(SlabBytesInUse(), 0u);
    VerifyAll();
  }

  // On a worker with a cache, whose own block keeps its slab.
  void FreeAllOn(Worker& worker) {
    worker.Do([this] {
      if (thread_state.cache == &no_cache) own_ = Allocate(2 * kBytes);
      for (void* p : blocks_) FreeLater(p);
    });
  }
  size_t CountMarked() const {
    size_t marked = 0;
    for (void* p : blocks_) {
      Slab* const slab = Slab::Of(p);
      marked += slab->remote.IsMarked(slab->IndexOf(p));
    }
    return marked;
  }

  void* blocks_[kFew];
  void* own_ = nullptr;
};

TEST_F(FreeLaterTest, BlocksAreMarkedWithTheFlush) {
  Worker worker;
  uint64_t counted = 0;
  worker.Do([&] {
    own_ = Allocate(2 * kBytes);
    counted = thread_state.cache->remote_batch().frees();
  });
  FreeAllOn(worker);
  EXPECT_EQ(CountMarked(), 0u);
  worker.Do([&] {
    const RemoteBatch& batch = thread_state.cache->remote_batch();
    EXPECT_EQ(batch.frees(), counted + kFew) << "counted as they are freed";
    EXPECT_TRUE(FlushRemoteFrees(thread_state.cache)) << "the owner is told";
    EXPECT_EQ(CountMarked(), kFew);
    EXPECT_EQ(batch.frees(), counted + kFew) << "and no more then";
    EXPECT_FALSE(FlushRemoteFrees(thread_state.cache)) << "nothing is left";
    Free(own_);
  });
}

TEST_F(FreeLaterTest, BlocksAreMarkedWhenTheBatchIsFull) {
  std::vector<void*> more;
  for (size_t bytes = 0; bytes < RemoteBatch::kMostBytes; bytes += 1024) {
    more.push_back(Allocate(1024));
  }
  Worker worker;
  FreeAllOn(worker);
  worker.Do([&] {
    for (void* p : more) FreeLater(p);
    Free(own_);
  });
  EXPECT_EQ(CountMarked(), kFew);
}

TEST_F(FreeLaterTest, BlocksAreMarkedWhenTheThreadFlushes) {
  Worker worker;
  FreeAllOn(worker);
  worker.Do([&] {
    ThreadCache::FlushThread();
    EXPECT_EQ(CountMarked(), kFew);
    Free(own_);
  });
}

TEST_F(FreeLaterTest, BlocksAreMarkedWhenTheThreadNeedsASlab) {
  Worker worker;
  FreeAllOn(worker);
  worker.Do([&] {
    void* const p = Allocate(kSmallMaxBytes);
    EXPECT_EQ(CountMarked(), kFew);
    Free(p);
    Free(own_);
  });
}

TEST_F(FreeLaterTest, BlocksAreMarkedWhenTheThreadExits) {
  Worker worker;
  FreeAllOn(worker);
  worker.Do([&] { Free(own_); });
  worker.End();
  EXPECT_EQ(CountMarked(), kFew);
}

// They became the thread's own while it held them.
TEST_F(FreeLaterTest, BlocksOfAnAdoptedSlabComeBack) {
  Worker owner;
  std::vector<void*> theirs;
  owner.Do([&] {
    for (int i = 0; i < 20; ++i) theirs.push_back(Allocate(3 * kBytes));
  });
  void* const mine = Allocate(4 * kBytes);
  for (size_t i = 1; i < theirs.size(); ++i) FreeLater(theirs[i]);
  owner.End();
  ASSERT_TRUE(IsOrphan(Slab::Of(theirs[0])));
  void* const adopted = Allocate(3 * kBytes);
  ASSERT_EQ(OwnerOf(theirs[0]), thread_state.cache);
  Free(theirs[0]);
  Free(adopted);
  Free(mine);
  for (void* p : blocks_) Free(p);
}

TEST_F(FreeLaterTest, AThreadThatOnlyFreesGetsACacheInTheEnd) {
  std::vector<void*> more;
  for (int i = 0; i < 500; ++i) more.push_back(Allocate(kBytes));
  OnAnotherThread([&] {
    for (void* p : blocks_) FreeLater(p);
    EXPECT_EQ(CountMarked(), kFew);
    EXPECT_EQ(thread_state.cache, &no_cache) << "for few blocks";
    for (void* p : more) FreeLater(p);
    EXPECT_NE(thread_state.cache, &no_cache);
  });
}

// Perturbation, say, has begun meanwhile: every free of the thread is to be seen.
TEST_F(FreeLaterTest, AThreadThatGetsACacheWithoutATagHoldsNothing) {
  std::vector<void*> more;
  for (int i = 0; i < 500; ++i) more.push_back(Allocate(kBytes));
  OnAnotherThread([&] {
    settings.perturb_byte = 1;
    while (thread_state.cache == &no_cache) {
      ASSERT_FALSE(more.empty());
      void* const p = more.back();
      more.pop_back();
      FreeLater(p);
      Slab* const slab = Slab::Of(p);
      EXPECT_TRUE(slab->remote.IsMarked(slab->IndexOf(p)));
    }
    EXPECT_EQ(thread_state.tag, 0u);
    settings.perturb_byte = 0;
    for (void* p : more) Free(p);
    for (void* p : blocks_) Free(p);
  });
}

TEST_F(FreeLaterTest, AThreadThatGaveItsCacheUpGetsNone) {
  std::vector<void*> more;
  for (int i = 0; i < 500; ++i) more.push_back(Allocate(kBytes));
  OnAnotherThread([&] {
    Free(Allocate(2 * kBytes));
    EndThread();
    for (void* p : blocks_) FreeLater(p);
    for (void* p : more) FreeLater(p);
    EXPECT_EQ(thread_state.cache, &no_cache);
    EXPECT_EQ(CountMarked(), kFew);
  });
}

// The batch of a thread that stayed behind in the parent.
TEST_F(FreeLaterTest, AForksChildMarksThem) {
  Worker worker;
  FreeAllOn(worker);
  EXPECT_EQ(InChild([&] {
              QUARRY_CHECK(CountMarked() == kFew);
              ThreadCache::FlushThread();
              VerifyAll();
            }),
            0);
  EXPECT_EQ(CountMarked(), 0u);
  worker.Do([&] { Free(own_); });
}

using RemoteFreeDeathTest = testing::Test;

// Runs as the child of a death test.
void FreeOnAnotherThread(void* p) {
  OnAnotherThread([p] { Free(p); });
}

TEST(RemoteFreeDeathTest, ASecondFreeIsFoundAtOnce) {
  void* const p = Allocate(kBytes);
  EXPECT_EXIT(
      {
        FreeOnAnotherThread(p);
        FreeOnAnotherThread(p);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
}

TEST(RemoteFreeDeathTest, ASecondFreeAfterADrainIsFoundByTheNext) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  EXPECT_EXIT(
      {
        FreeOnAnotherThread(p);
        ThreadCache::FlushThread();
        FreeOnAnotherThread(p);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
  Free(q);
}

TEST(RemoteFreeDeathTest, AFreeByTheOwnerAndByAnotherIsFoundAtFlush) {
  void* const p = Allocate(kBytes);
  EXPECT_EXIT(
      {
        Free(p);
        FreeOnAnotherThread(p);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  EXPECT_EXIT(
      {
        FreeOnAnotherThread(p);
        Free(p);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
}

TEST(RemoteFreeDeathTest, ADoubleFreeOfAnOrphansBlockIsFoundAtOnce) {
  void* p;
  void* q;
  OnAnotherThread([&] {
    p = Allocate(kBytes);
    q = Allocate(kBytes);
  });
  EXPECT_EXIT(
      {
        Free(p);
        Free(p);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
  Free(q);
}

// Of blocks of a thread that lives, by a thread that has a cache.
class FreeLaterDeathTest : public testing::Test {
 protected:
  FreeLaterDeathTest() : mine_(Allocate(kBytes)) {
    owner_.Do([this] {
      p_ = Allocate(kBytes);
      q_ = Allocate(kBytes);
    });
  }
  ~FreeLaterDeathTest() override {
    Free(mine_);
    owner_.Do([this] {
      Free(p_);
      Free(q_);
    });
  }

  Worker owner_;
  void* const mine_;
  void* p_ = nullptr;
  void* q_ = nullptr;
};

TEST_F(FreeLaterDeathTest, ASecondFreeOfAHeldBlockIsFoundAtOnce) {
  EXPECT_EXIT(
      {
        FreeLater(p_);
        FreeLater(q_);
        FreeLater(p_);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p_)));
}

TEST_F(FreeLaterDeathTest, ASecondFreeOfAMarkedBlockIsFoundWithItsWord) {
  EXPECT_EXIT(
      {
        FreeLater(p_);
        (void)FlushRemoteFrees(thread_state.cache);
        FreeLater(q_);
        FreeLater(p_);
        (void)FlushRemoteFrees(thread_state.cache);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p_)));
}

// Its slab went back to the arena after the first free was marked.
TEST_F(FreeLaterDeathTest, ASecondFreeThatWasHeldMayBeOfNoBlockAnyMore) {
  EXPECT_EXIT(
      {
        FreeLater(p_);
        // As Slab::Return() leaves it.
        PageMap::Set(Slab::Of(p_)->start(), kGranuleBytes, kRunTag, nullptr);
        (void)FlushRemoteFrees(thread_state.cache);
      },
      testing::KilledBySignal(SIGABRT),
      testing::Eq("quarry: free of " + Hex(p_) +
                  ", which Quarry did not allocate, aborting\n"));
}

// Or it is a slab of another class now, and perhaps of this thread's.
TEST_F(FreeLaterDeathTest, ASecondFreeThatWasHeldMayBeOfAnotherClassNow) {
  for (Tag owner : {Tag{thread_state.tag}, 999 * kOwnerUnit}) {
    EXPECT_EXIT(
        {
          FreeLater(p_);
          Slab* const slab = Slab::Of(p_);
          PageMap::Set(slab->start(), kGranuleBytes,
                       owner | MagazineOffset(ClassOf(2 * kBytes)), slab);
          (void)FlushRemoteFrees(thread_state.cache);
        },
        testing::KilledBySignal(SIGABRT),
        testing::Eq("quarry: free of " + Hex(p_) +
                    ", which Quarry did not allocate, aborting\n"));
  }
}

TEST(RemoteFreeDeathTest, NamesTheBlockOfAnInteriorPointer) {
  char* const p = static_cast<char*>(Allocate(kBytes));
  EXPECT_EXIT(FreeOnAnotherThread(p + 16), testing::KilledBySignal(SIGABRT),
              testing::Eq("quarry: free of " + Hex(p + 16) +
                          ", which is 16 bytes inside the 112-byte block " +
                          Hex(p) + ", aborting\n"));
  Free(p);
}

TEST(RemoteFreeDeathTest, WhatLiesBehindTheLastBlockIsForeign) {
  void* p;
  OnAnotherThread([&] { p = Allocate(kBytes); });
  const Slab* const slab = Slab::Of(p);
  char* const tail = slab->BlockAt(slab->blocks());
  ASSERT_EQ(Slab::Of(tail), slab);
  EXPECT_EXIT(Free(tail), testing::KilledBySignal(SIGABRT),
              testing::Eq("quarry: free of " + Hex(tail) +
                          ", which Quarry did not allocate, aborting\n"));
  Free(p);
}

TEST(RemoteFreeDeathTest, TheReportNamesTheCall) {
  char* const p = static_cast<char*>(Allocate(kBytes));
  CheckIsBlock("realloc", Slab::Of(p), p);
  EXPECT_EXIT(CheckIsBlock("realloc", Slab::Of(p), p + 111),
              testing::KilledBySignal(SIGABRT),
              testing::Eq("quarry: realloc of " + Hex(p + 111) +
                          ", which is 111 bytes inside the 112-byte block " +
                          Hex(p) + ", aborting\n"));
  Free(p);
}

}  // namespace
}  // namespace quarry
