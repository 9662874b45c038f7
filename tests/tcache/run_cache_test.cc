#include "tcache/run_cache.h"

#include <array>
#include <atomic>
#include <set>
#include <vector>

#include "gtest/gtest.h"

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
    const size_t slot = cache_.Find(pages * PageBytes());
    if (slot == RunCache::kSlots) return nullptr;
    void* start = nullptr;
    PageRun* const run = cache_.Take(slot, &start);
    EXPECT_EQ(start, run->start);
    return run;
  }

  bool PutInRoom(PageRun* run) {
    const size_t slot = cache_.FindRoom(run->bytes());
    if (slot == RunCache::kSlots) return false;
    cache_.PutIn(slot, run, run->start, run->bytes());
    return true;
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
  EXPECT_TRUE(PutInRoom(&runs[0]));
  EXPECT_EQ(runs[0].state, PageRun::kCached);
  EXPECT_TRUE(PutInRoom(&runs[1]));
  EXPECT_FALSE(PutInRoom(&runs[2]));
  EXPECT_NE(cache_.PopAbove(0), nullptr);
  EXPECT_NE(cache_.PopAbove(0), nullptr);
}

TEST_F(RunCacheTest, TheShortWayEvictsNone) {
  std::array<PageRun, RunCache::kSlots + 1> runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    Make(&runs[i], 1);
    runs[i].state = PageRun::kInUse;
    EXPECT_EQ(PutInRoom(&runs[i]), i < RunCache::kSlots);
  }
  EXPECT_EQ(runs.back().state, PageRun::kInUse);
  EXPECT_EQ(cache_.PopAbove(0), &runs[0]);
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

TEST_F(RunCacheTest, WhatWasFoundMayBeGone) {
  PageRun run;
  Make(&run, 7);
  EXPECT_EQ(cache_.Put(&run), nullptr);
  const size_t slot = cache_.Find(7 * PageBytes());
  ASSERT_LT(slot, RunCache::kSlots);
  EXPECT_FALSE(cache_.StealIdle(true, [](PageRun*) {}));
  void* start;
  EXPECT_EQ(cache_.Take(slot, &start), nullptr);
}

}  // namespace
}  // namespace quarry
