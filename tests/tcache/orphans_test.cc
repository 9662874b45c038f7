#include "tcache/orphans.h"

#include <atomic>
#include <thread>
#include <vector>

#include "arena/maintenance_signal.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/thread_life.h"
#include "tests/tcache/blocks.h"

namespace quarry {
namespace {

// Every thread shall look for orphans in the same place.
const bool one_arena = (settings.arenas_max = 1, true);

// A class of which nothing else in the process has blocks.
constexpr size_t kBytes = 112;

class OrphansTest : public testing::Test {
 protected:
  ~OrphansTest() override {
    VerifyAll();
    ThreadCache::FlushThread();
    EXPECT_EQ(CountOrphans(), 0u);
    EXPECT_EQ(SlabBytesInUse(), 0u) << "a slab is lost";
  }

  // Blocks of one slab that the exit of their thread made an orphan.
  static std::vector<void*> LeaveBlocks(size_t count, size_t bytes = kBytes) {
    std::vector<void*> blocks;
    OnAnotherThread([&] {
      for (size_t i = 0; i < count; ++i) blocks.push_back(Allocate(bytes));
    });
    for (void* p : blocks) EXPECT_EQ(Slab::Of(p), Slab::Of(blocks[0]));
    return blocks;
  }
};

TEST_F(OrphansTest, ASlabWithBlocksInUseOutlivesItsThread) {
  const std::vector<void*> blocks = LeaveBlocks(3);
  Slab* const slab = Slab::Of(blocks[0]);
  EXPECT_EQ(slab->owner.load(), nullptr);
  EXPECT_EQ(slab->used(), 3u);
  EXPECT_TRUE(IsOrphan(slab));
  EXPECT_EQ(CountOrphans(), 1u);
  EXPECT_EQ(PageMap::TagOf(blocks[0]), kNobody | MagazineOffset(slab->size_class()));
  for (void* p : blocks) Free(p);
}

TEST_F(OrphansTest, EmptySlabsGoBackWhenTheirThreadExits) {
  const size_t before = SlabBytesInUse();
  OnAnotherThread([] {
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      Free(AllocateOfClass(c));
    }
    EXPECT_GT(SlabBytesInUse(), 0u);
  });
  EXPECT_EQ(SlabBytesInUse(), before);
  EXPECT_EQ(CountOrphans(), 0u);
}

TEST_F(OrphansTest, ARemoteFreeThatCompletesAnOrphanGivesTheSlabBack) {
  for (size_t bytes : {size_t{16}, kBytes, kSmallMaxBytes / 2}) {
    const size_t before = SlabBytesInUse();
    const std::vector<void*> blocks = LeaveBlocks(2, bytes);
    Slab* const slab = Slab::Of(blocks[0]);
    Free(blocks[0]);
    EXPECT_TRUE(IsOrphan(slab));
    EXPECT_EQ(slab->used(), 1u) << "drained at once";
    EXPECT_TRUE(slab->remote.IsEmpty());
    Free(blocks[1]);
    EXPECT_EQ(SlabBytesInUse(), before);
    EXPECT_EQ(PageMap::TagOf(blocks[1]), kRunTag);
  }
}

TEST_F(OrphansTest, AThreadAdoptsBeforeItAsksTheArena) {
  const std::vector<void*> blocks = LeaveBlocks(3);
  Slab* const slab = Slab::Of(blocks[0]);
  const size_t before = SlabBytesInUse();
  OnAnotherThread([&] {
    void* const p = Allocate(kBytes);
    ThreadCache* const cache = thread_state.cache;
    EXPECT_EQ(Slab::Of(p), slab);
    EXPECT_EQ(slab->owner.load(), cache);
    EXPECT_EQ(PageMap::TagOf(p), cache->tag() | MagazineOffset(ClassOf(kBytes)));
    EXPECT_FALSE(IsOrphan(slab));
    EXPECT_EQ(SlabBytesInUse(), before);
    EXPECT_EQ(cache->counters().adoptions, 1u);
    // What the first thread allocated is now as if this one had.
    for (void* block : blocks) EXPECT_TRUE(TryPush(block));
    Free(p);
  });
}

TEST_F(OrphansTest, TheirFreePagesGoBack) {
  const size_t bytes = PageBytes();
  constexpr int kBlocks = 100;
  char* blocks[kBlocks];
  OnAnotherThread([&] {
    for (char*& block : blocks) {
      block = static_cast<char*>(Allocate(bytes));
      memset(block, 0x55, bytes);
    }
    for (int i = 0; i < kBlocks; i += 2) Free(blocks[i]);
  });
  ASSERT_TRUE(IsOrphan(Slab::Of(blocks[1])));
  const auto tidy = [](bool is_urgent) {
    bool gave_back = false;
    bool more = false;
    for (size_t i = 0; i < ArenasMade(); ++i) {
      if (OrphansOf(i).Tidy(is_urgent, &gave_back)) more = true;
    }
    // While there is something to do, it is not yet done.
    EXPECT_FALSE(more && gave_back);
    return gave_back;
  };
  for (int i = 0; i < SlabPass::kIdleLooks; ++i) EXPECT_FALSE(tidy(false));
  EXPECT_EQ(blocks[2][bytes - 1], 0x55);
  EXPECT_TRUE(tidy(false));
  EXPECT_FALSE(tidy(false)) << "once";
  for (int i = 0; i < kBlocks; ++i) {
    const char expected = i % 2 == 0 ? 0 : 0x55;
    EXPECT_EQ(blocks[i][0], expected) << i;
    EXPECT_EQ(blocks[i][bytes - 1], expected) << i;
  }
  VerifyAll();
  for (int i = 1; i < kBlocks; i += 2) {
    Free(blocks[i]);
    if (i == 51) {
      EXPECT_TRUE(tidy(true)) << "at once";
    }
  }
}

// A thread exits with every block in use, and others free most of them: there is
// work for the maintenance thread, though no slab comes free.
TEST_F(OrphansTest, FreesThatLeaveOrphansPartlyUsedAreNotedAsWork) {
  const size_t bytes = PageBytes();
  std::vector<void*> blocks(64);
  OnAnotherThread([&] {
    for (void*& block : blocks) block = Allocate(bytes);
  });
  const auto state_after = [](auto step) {
    maintenance_signal.FallAsleep();
    step();
    const bool is_noted =
        maintenance_signal.state() != MaintenanceSignal::State::kAsleep;
    maintenance_signal.ResetAfterFork();
    return is_noted;
  };
  EXPECT_TRUE(state_after([&] { Free(blocks[0]); }));
  // So it is when many threads leave free blocks behind, each of them few.
  std::vector<void*> left;
  EXPECT_TRUE(state_after([&] {
    for (int i = 0; i < 40; ++i) {
      OnAnotherThread([&] {
        left.push_back(Allocate(bytes));
        Free(Allocate(2 * bytes));
      });
    }
  }));
  for (size_t i = 1; i < blocks.size(); ++i) Free(blocks[i]);
  for (void* block : left) Free(block);
}

TEST_F(OrphansTest, OfAnotherClassAreLeftAlone) {
  const std::vector<void*> blocks = LeaveBlocks(1);
  OnAnotherThread([&] {
    void* const p = Allocate(2 * kBytes);
    EXPECT_TRUE(IsOrphan(Slab::Of(blocks[0])));
    Free(p);
  });
  Free(blocks[0]);
}

TEST_F(OrphansTest, AFullOneIsAdoptedOnlyAfterAFree) {
  const size_t count = SlabBlocks(ClassOf(kSlabsOnlyMaxBytes));
  const std::vector<void*> blocks = LeaveBlocks(count, kSlabsOnlyMaxBytes);
  Slab* const slab = Slab::Of(blocks[0]);
  ASSERT_EQ(slab->free_blocks(), 0u);
  ThreadCache* const cache = cache_registry.Take();
  Orphans& orphans = OrphansOf(0);
  EXPECT_EQ(orphans.Adopt(slab->size_class(), cache), nullptr);
  Free(blocks[0]);
  EXPECT_TRUE(IsOrphan(slab));
  EXPECT_EQ(orphans.Adopt(slab->size_class(), cache), slab);
  EXPECT_EQ(orphans.Adopt(slab->size_class(), cache), nullptr);
  {
    LockHolder hold(orphans.lock());
    orphans.Add(slab);
  }
  cache_registry.Give(cache);
  for (size_t i = 1; i < count; ++i) Free(blocks[i]);
}

// Owners exit, adopt and exit again while others free their blocks.
TEST_F(OrphansTest, NoBlockIsLostWhileOwnersComeAndGo) {
  constexpr size_t kSlots = 64;
  constexpr int kOwners = 600;
  std::atomic<void*> slots[kSlots] = {};
  std::atomic<bool> stop{false};
  Free(Allocate(kBytes));
  std::thread freer([&] {
    for (size_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      if (i % kSlots == 0) std::this_thread::yield();
      void* const p =
          slots[i % kSlots].exchange(nullptr, std::memory_order_acquire);
      if (p != nullptr) Free(p);
    }
  });
  for (int i = 0; i < kOwners; ++i) {
    OnAnotherThread([&] {
      for (std::atomic<void*>& slot : slots) {
        void* const p =
            slot.exchange(Allocate(kBytes), std::memory_order_acq_rel);
        if (p != nullptr) Free(p);
      }
    });
  }
  stop = true;
  freer.join();
  for (std::atomic<void*>& slot : slots) {
    if (void* const p = slot.load()) Free(p);
  }
}

}  // namespace
}  // namespace quarry
