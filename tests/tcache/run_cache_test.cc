#include "tcache/run_cache.h"

#include <array>
#include <atomic>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// gtest has a Run of its own.
using PageRun = Run;

// Runs of no segment: the cache looks at nothing but their size.
class RunCacheTest : public testing::Test {
 protected:
  static void Make(PageRun* run, uint32_t pages) {
    run->pages = pages;
    // No two alike, as long as both are there.
    run->start = reinterpret_cast<char*>(run);
    run->state.store(PageRun::kCached, std::memory_order_relaxed);
  }

  PageRun* Take(size_t pages) {
    void* start = nullptr;
    PageRun* const run = cache_.Take(pages * PageBytes(), &start);
    EXPECT_TRUE(run == nullptr || start == run->start);
    return run;
  }

  std::vector<PageRun*> Steal() {
    std::vector<PageRun*> stolen;
    left_ = cache_.StealIdle(false, [&](PageRun* run) { stolen.push_back(run); });
    return stolen;
  }

  RunCache cache_;
  bool left_ = false;
};

TEST_F(RunCacheTest, GivesARunOfTheExactSizeBack) {
  PageRun run;
  Make(&run, 25);
  EXPECT_EQ(Take(25), nullptr);
  EXPECT_EQ(cache_.Put(&run), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 25 * PageBytes());
  EXPECT_EQ(Take(24), nullptr);
  EXPECT_EQ(Take(26), nullptr);
  run.zeroed = true;
  EXPECT_EQ(Take(25), &run);
  EXPECT_TRUE(run.IsInUse());
  EXPECT_FALSE(run.zeroed) << "the program wrote to it";
  EXPECT_EQ(Take(25), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 0u);
}

TEST_F(RunCacheTest, TheShortWayKeepsOnlyAFew) {
  std::array<PageRun, 3> runs;
  for (PageRun& run : runs) {
    Make(&run, static_cast<uint32_t>(RunCache::kFewBytes / 2 / PageBytes()));
    run.state = PageRun::kInUse;
  }
  EXPECT_TRUE(cache_.TryPut(&runs[0], runs[0].start));
  EXPECT_EQ(runs[0].state, PageRun::kCached);
  EXPECT_TRUE(cache_.TryPut(&runs[1], runs[1].start));
  EXPECT_FALSE(cache_.TryPut(&runs[2], runs[2].start));
  EXPECT_EQ(runs[2].state, PageRun::kInUse);
  EXPECT_NE(cache_.PopAbove(0), nullptr);
  EXPECT_NE(cache_.PopAbove(0), nullptr);
}

TEST_F(RunCacheTest, KeepsNoRunThatIsTooLarge) {
  PageRun run;
  Make(&run, static_cast<uint32_t>(RunCache::kMostRunBytes / PageBytes()));
  EXPECT_EQ(cache_.Put(&run), nullptr);
  PageRun larger;
  Make(&larger, run.pages + 1);
  EXPECT_EQ(cache_.Put(&larger), &larger);
  EXPECT_EQ(cache_.PopAbove(0), &run);
  EXPECT_EQ(cache_.PopAbove(0), nullptr);
}

TEST_F(RunCacheTest, AFullCacheGivesTheOldestUp) {
  std::array<PageRun, RunCache::kSlots + 3> runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    Make(&runs[i], static_cast<uint32_t>(10 + i));
    PageRun* const evicted = cache_.Put(&runs[i]);
    EXPECT_EQ(evicted, i < RunCache::kSlots ? nullptr
                                            : &runs[i - RunCache::kSlots]);
  }
  std::set<PageRun*> left;
  while (PageRun* run = cache_.PopAbove(0)) EXPECT_TRUE(left.insert(run).second);
  EXPECT_EQ(left.size(), RunCache::kSlots);
  EXPECT_EQ(cache_.cached_bytes(), 0u);
}

TEST_F(RunCacheTest, PopsRunsUntilAsManyBytesAreLeft) {
  std::array<PageRun, 4> runs;
  for (PageRun& run : runs) {
    Make(&run, 10);
    EXPECT_EQ(cache_.Put(&run), nullptr);
  }
  EXPECT_EQ(cache_.PopAbove(40 * PageBytes()), nullptr);
  EXPECT_NE(cache_.PopAbove(25 * PageBytes()), nullptr);
  EXPECT_NE(cache_.PopAbove(25 * PageBytes()), nullptr);
  EXPECT_EQ(cache_.PopAbove(25 * PageBytes()), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 20 * PageBytes());
}

TEST_F(RunCacheTest, IdleRunsArePoppedOneByOne) {
  std::array<PageRun, 3> runs;
  for (PageRun& run : runs) {
    Make(&run, 10);
    EXPECT_EQ(cache_.Put(&run), nullptr);
  }
  EXPECT_EQ(cache_.PopIdle(), nullptr) << "put in since the last call";
  EXPECT_EQ(cache_.PopIdle(), &runs[0]);
  EXPECT_TRUE(Steal().empty()) << "for that the owner has not been idle";
  EXPECT_EQ(cache_.PopIdle(), &runs[1]) << "nor is it busy for having been asked";
  EXPECT_EQ(cache_.Put(&runs[0]), nullptr);
  EXPECT_EQ(cache_.PopIdle(), nullptr);
  EXPECT_NE(cache_.PopIdle(), nullptr);
  EXPECT_NE(cache_.PopIdle(), nullptr);
  EXPECT_EQ(cache_.PopIdle(), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 0u);
}

TEST_F(RunCacheTest, RunsAreStolenFromAnIdleOwnerAlone) {
  PageRun run;
  Make(&run, 7);
  EXPECT_TRUE(Steal().empty());
  EXPECT_FALSE(left_) << "there is nothing";
  EXPECT_EQ(cache_.Put(&run), nullptr);
  EXPECT_TRUE(Steal().empty());
  EXPECT_TRUE(left_) << "put in since the last call";
  EXPECT_EQ(Take(7), &run);
  run.state = PageRun::kCached;
  EXPECT_EQ(cache_.Put(&run), nullptr);
  EXPECT_TRUE(Steal().empty());
  EXPECT_TRUE(left_);
  EXPECT_EQ(Steal(), std::vector<PageRun*>{&run});
  EXPECT_FALSE(left_);
  EXPECT_EQ(run.state, PageRun::kCached) << "the arena takes it so";
  EXPECT_EQ(Take(7), nullptr);
}

TEST_F(RunCacheTest, WhatIsUrgentIsStolenAtOnce) {
  PageRun run;
  Make(&run, 7);
  EXPECT_EQ(cache_.Put(&run), nullptr);
  PageRun* stolen = nullptr;
  EXPECT_FALSE(cache_.StealIdle(true, [&](PageRun* r) { stolen = r; }));
  EXPECT_EQ(stolen, &run);
}

// The owner and a thief at work at once: no run is ever with both, and none is
// lost. The thief returns what it stole through a mailbox.
TEST_F(RunCacheTest, OwnerAndThiefNeverHoldTheSameRun) {
  constexpr int kRuns = 12;
  constexpr int kSteps = 200'000;
  std::array<PageRun, kRuns> runs;
  std::array<std::atomic<int>, kRuns> holders = {};
  std::atomic<PageRun*> mailbox{nullptr};
  std::atomic<bool> done{false};
  std::vector<PageRun*> kept_by_thief;
  const auto hold = [&](PageRun* run) {
    EXPECT_EQ(holders[static_cast<size_t>(run - runs.data())].fetch_add(1), 0);
  };
  const auto let_go = [&](PageRun* run) {
    EXPECT_EQ(holders[static_cast<size_t>(run - runs.data())].fetch_sub(1), 1);
  };

  std::thread thief([&] {
    while (!done.load(std::memory_order_relaxed)) {
      cache_.StealIdle(false, [&](PageRun* run) {
        hold(run);
        kept_by_thief.push_back(run);
      });
      if (!kept_by_thief.empty() &&
          mailbox.load(std::memory_order_relaxed) == nullptr) {
        PageRun* const run = kept_by_thief.back();
        kept_by_thief.pop_back();
        let_go(run);
        mailbox.store(run, std::memory_order_release);
      }
    }
  });

  std::mt19937 random(TestSeed());
  std::vector<PageRun*> mine;
  for (int i = 0; i < kRuns; ++i) {
    Make(&runs[static_cast<size_t>(i)], static_cast<uint32_t>(3 + i % 3));
    mine.push_back(&runs[static_cast<size_t>(i)]);
    hold(mine.back());
  }
  for (int step = 0; step < kSteps; ++step) {
    if (PageRun* run = mailbox.exchange(nullptr, std::memory_order_acquire)) {
      hold(run);
      mine.push_back(run);
    }
    if (!mine.empty() && random() % 2 == 0) {
      PageRun* const run = mine.back();
      mine.pop_back();
      let_go(run);
      run->state.store(PageRun::kCached, std::memory_order_relaxed);
      if (PageRun* evicted = cache_.Put(run)) {
        hold(evicted);
        mine.push_back(evicted);
      }
    } else if (PageRun* const idle = random() % 4 == 0 ? cache_.PopIdle() : nullptr) {
      hold(idle);
      mine.push_back(idle);
    } else if (PageRun* const run = Take(static_cast<uint32_t>(3 + random() % 3))) {
      hold(run);
      mine.push_back(run);
    }
    // Now and then long enough for the thief to find the owner idle.
    if (step % 1000 == 0) std::this_thread::yield();
  }
  done = true;
  thief.join();
  size_t found = mine.size() + kept_by_thief.size();
  if (mailbox.load() != nullptr) ++found;
  while (cache_.PopAbove(0) != nullptr) ++found;
  EXPECT_EQ(found, size_t{kRuns});
}

}  // namespace
}  // namespace quarry
