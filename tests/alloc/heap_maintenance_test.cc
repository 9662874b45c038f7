// Memory that goes back by itself, whichever call made it free. Each test runs
// in a child, since the thread that gives it back stays.
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "alloc/heap.h"
#include "arena/maintenance_signal.h"
#include "arena/page_source.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/in_child.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// Both without another call of the heap's that could do the work.
void CheckThatMemoryGoesBack() {
  QUARRY_CHECK(maintenance_signal.state() == MaintenanceSignal::kAwake ||
               maintenance_signal.state() == MaintenanceSignal::kAsleep);
  QUARRY_CHECK(Soon([] {
    const HeapStatistics s = GatherStatistics();
    return s.arena_dirty_bytes == 0 && s.huge_cached_bytes == 0;
  }));
}

template <typename Step>
void ExpectToGoBackAfter(Step step) {
  EXPECT_EQ(InChild([&] {
              settings.decay_ms = 50;
              Deallocate(Allocate(1));
              step();
              CheckThatMemoryGoesBack();
            }),
            0);
}

TEST(HeapMaintenance, AfterSmallBlocksWereFreed) {
  const uint64_t seed = TestSeed();
  for (const bool in_order : {true, false}) {
    ExpectToGoBackAfter([&] {
      std::vector<void*> blocks(Steps(100000));
      for (void*& block : blocks) block = Allocate(1000);
      if (!in_order) {
        std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(seed));
      }
      QUARRY_CHECK(maintenance_signal.state() == MaintenanceSignal::kNoThread);
      for (void* block : blocks) Deallocate(block);
    });
  }
}

// Few to a slab.
std::vector<void*> BlocksOf10000() {
  std::vector<void*> blocks(Steps(5000));
  for (void*& block : blocks) {
    block = Allocate(10'000);
    memset(block, 1, 10'000);
  }
  QUARRY_CHECK(maintenance_signal.state() == MaintenanceSignal::kNoThread);
  return blocks;
}

void CheckThatHalfGoesBack(const std::vector<void*>& blocks) {
  QUARRY_CHECK(Soon([&] {
    return OsPages().statistics().purged_bytes > blocks.size() * 10'000 / 2;
  }));
}

TEST(HeapMaintenance, AfterLargeBlocksOfSlabsWereFreed) {
  for (const bool all : {true, false}) {
    ExpectToGoBackAfter([&] {
      std::vector<void*> blocks = BlocksOf10000();
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (all || i % 8 != 0) Deallocate(blocks[i]);
      }
      // Or a call for figures would, when the maintenance thread has looked already.
      thread_state.cache->FlushNotes();
      // What slabs with some blocks in use have free, too.
      CheckThatHalfGoesBack(blocks);
    });
  }
}

TEST(HeapMaintenance, AfterBlocksOfSlabsHaveGrown) {
  ExpectToGoBackAfter([] {
    std::vector<void*> blocks = BlocksOf10000();
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i % 8 != 0) blocks[i] = Reallocate(blocks[i], 40'000);
    }
    CheckThatHalfGoesBack(blocks);
  });
}

// None of them is cold after it, and no free of them needs a slow path.
TEST(HeapMaintenance, AfterSmallBlocksOfManySizesWereFreed) {
  ExpectToGoBackAfter([] {
    std::vector<void*> blocks;
    for (size_t bytes = 128; bytes <= 1024; bytes += 128) {
      for (size_t i = 0; i < 400 * kKiB / bytes; ++i) {
        blocks.push_back(Allocate(bytes));
        memset(blocks.back(), 1, bytes);
      }
    }
    QUARRY_CHECK(maintenance_signal.state() == MaintenanceSignal::kNoThread);
    for (void* block : blocks) Deallocate(block);
    QUARRY_CHECK(Soon([] { return OsPages().statistics().purged_bytes > kMiB; }));
  });
}

TEST(HeapMaintenance, AfterAPageRunWasFreed) {
  ExpectToGoBackAfter([] {
    char* const block = Allocate(3 * kMiB);
    memset(block, 1, 3 * kMiB);
    Deallocate(block);
  });
}

// Frees a block of 2 MiB. Whether the thread has its run then: it may have gone before this
// looks.
bool IsSeenKept(char* block) {
  memset(block, 1, 2 * kMiB);
  Deallocate(block);
  return GatherStatistics().cached_bytes >= 2 * kMiB;
}

bool OneIsSeenKept() {
  return Soon([] { return IsSeenKept(Allocate(2 * kMiB)); });
}

TEST(HeapMaintenance, AfterAThreadKeptAPageRun) {
  ExpectToGoBackAfter([] {
    QUARRY_CHECK(OneIsSeenKept());
    QUARRY_CHECK(Soon([] { return GatherStatistics().cached_bytes < kMiB; }));
  });
}

// The second time it is freed in a shorter way.
TEST(HeapMaintenance, AfterAThreadKeptAPageRunAgain) {
  ExpectToGoBackAfter([] {
    char* block = Allocate(2 * kMiB);
    Deallocate(block);
    block = Allocate(2 * kMiB);
    memset(block, 1, 2 * kMiB);
    QUARRY_CHECK(Soon([] {
      return maintenance_signal.state() == MaintenanceSignal::kAsleep ||
             maintenance_signal.state() == MaintenanceSignal::kNoThread;
    }));
    QUARRY_CHECK(IsSeenKept(block) || OneIsSeenKept());
    QUARRY_CHECK(Soon([] { return GatherStatistics().cached_bytes < kMiB; }));
  });
}

// None of them keeps much, all of them together do.
TEST(HeapMaintenance, AfterManyThreadsKeptAFewPageRunsEach) {
  ExpectToGoBackAfter([] {
    constexpr int kThreads = 20;
    std::barrier all_have_freed(kThreads + 1);
    std::barrier all_may_go(kThreads + 1);
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        char* const block = Allocate(300 * kKiB);
        memset(block, 1, 300 * kKiB);
        Deallocate(block);
        all_have_freed.arrive_and_wait();
        all_may_go.arrive_and_wait();
      });
    }
    all_have_freed.arrive_and_wait();
    QUARRY_CHECK(Soon([] { return GatherStatistics().cached_bytes < kMiB; }));
    all_may_go.arrive_and_wait();
    for (std::thread& thread : threads) thread.join();
  });
}

TEST(HeapMaintenance, AfterAHugeBlockWasFreed) {
  ExpectToGoBackAfter([] {
    // Else it raises the threshold, and is not kept.
    settings.mmap_threshold_adapts = false;
    char* const block = Allocate(20 * kMiB);
    memset(block, 1, 20 * kMiB);
    Deallocate(block);
  });
}

TEST(HeapMaintenance, AfterABlockShrank) {
  ExpectToGoBackAfter([] {
    char* const block = Allocate(3 * kMiB);
    memset(block, 1, 3 * kMiB);
    QUARRY_CHECK(Reallocate(block, 1600 * kKiB) == block);
  });
}

TEST(HeapMaintenance, AfterAThreadGaveItsBlocksUp) {
  ExpectToGoBackAfter([] {
    // As many as fit into magazines and depots.
    std::vector<void*> blocks(60);
    for (size_t bytes = 1000; bytes <= 32000; bytes += 1000) {
      for (void*& block : blocks) block = Allocate(bytes);
      for (void* block : blocks) Deallocate(block);
    }
    FlushThread();
  });
}

TEST(HeapMaintenance, NoThreadWhereItIsTurnedOff) {
  EXPECT_EQ(InChild([] {
              settings.maintenance = false;
              settings.decay_ms = 20;
              char* const block = Allocate(3 * kMiB);
              memset(block, 1, 3 * kMiB);
              Deallocate(block);
              // The slow path that would have started it.
              QUARRY_CHECK(maintenance_signal.IsOff());
              // The next calls do the work.
              QUARRY_CHECK(Soon([] {
                FlushThread();
                return GatherStatistics().arena_dirty_bytes == 0;
              }));
            }),
            0);
}

// Of a program that only frees, and blocks whose frees need no slow path as a rule.
TEST(HeapMaintenance, FreesOfLargeBlocksDoTheWorkWhereThereIsNoThread) {
  for (const size_t bytes : {size_t{10'000}, size_t{20'000}, kSmallMaxBytes}) {
    EXPECT_EQ(InChild([bytes] {
                settings.maintenance = false;
                settings.decay_ms = 20;
                std::vector<char*> blocks(32 * kMiB / bytes);
                for (char*& block : blocks) {
                  block = Allocate(bytes);
                  memset(block, 1, bytes);
                }
                // In the end what the thread keeps is left, and what is not due yet.
                for (size_t i = 0; i < blocks.size(); ++i) {
                  Deallocate(blocks[i]);
                  if (i % 16 != 0) continue;
                  std::this_thread::sleep_for(std::chrono::milliseconds(4));
                }
                QUARRY_CHECK(maintenance_signal.IsOff());
                QUARRY_CHECK(OsPages().statistics().purged_bytes > 16 * kMiB);
              }),
              0)
        << bytes;
  }
}

}  // namespace
}  // namespace quarry
