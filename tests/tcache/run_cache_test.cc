#include "tcache/run_cache.h"

#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <random>
#include <set>
#include <vector>

#include "arena/page_source.h"
#include "arena/run.h"
#include "gtest/gtest.h"
#include "tcache/size_classes.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// gtest has a Run of its own.
using PageRun = Run;

// Runs of no segment: the cache looks at nothing but their size.
class RunCacheTest : public testing::Test {
 protected:
  // Sizes are given in units of kUnit, of which 8 to 16 are sizes of medium blocks,
  // whatever the size of pages.
  static constexpr size_t kUnit = RunCache::kMostRunBytes / 16;
  static constexpr size_t kKiB = 1024;

  static void MakePages(PageRun* run, size_t pages) {
    run->pages = static_cast<uint32_t>(pages);
    // No two alike, as long as both are there.
    run->start = reinterpret_cast<char*>(run);
    run->state.store(PageRun::kCached, std::memory_order_relaxed);
  }
  static void Make(PageRun* run, size_t units) {
    MakePages(run, PagesFor(units * kUnit));
  }

  PageRun* Take(size_t units) {
    return RunAt(cache_.Take(RunCache::ListFor(units * kUnit)));
  }

  // See MakePages().
  static PageRun* RunAt(void* start) {
    PageRun* const run = static_cast<PageRun*>(start);
    EXPECT_TRUE(run == nullptr || start == run->start);
    return run;
  }

  bool PutInRoom(PageRun* run) {
    return cache_.TryPutIn(RunCache::ListOfRun(run->bytes()), run, run->start,
                           run->bytes());
  }

  ~RunCacheTest() override { cache_.Verify(); }

  std::vector<PageRun*> Steal() {
    std::vector<PageRun*> stolen;
    left_ = cache_.StealIdle(false, [&](PageRun* run) { stolen.push_back(run); });
    return stolen;
  }

  RunCache cache_;
  bool left_ = false;
};

// Each size that a medium block has is of a list of its own, and no other size is of
// any, with pages of 4 KiB; with larger ones there are fewer sizes.
TEST_F(RunCacheTest, EachMediumSizeHasAList) {
  std::set<size_t> lists;
  for (size_t bytes = PageBytes(); bytes <= 2 * RunCache::kMostRunBytes;
       bytes += PageBytes()) {
    const bool is_kept = bytes > kSlabsOnlyMaxBytes &&
                         bytes <= RunCache::kMostRunBytes &&
                         MediumBytes(bytes) == bytes;
    ASSERT_EQ(RunCache::ListOfRun(bytes) != RunCache::kNoList, is_kept) << bytes;
    if (!is_kept) continue;
    const size_t list = RunCache::ListOfRun(bytes);
    ASSERT_LT(list, RunCache::kLists);
    ASSERT_TRUE(lists.insert(list).second) << bytes;
    ASSERT_EQ(RunCache::ListFor(bytes), list);
    ASSERT_EQ(RunCache::ListFor(bytes - 1), list);
  }
  EXPECT_TRUE(lists.contains(RunCache::kLists - 1));
}

TEST_F(RunCacheTest, GivesARunOfTheSizeBack) {
  PageRun run;
  Make(&run, 11);
  run.zeroed = true;
  EXPECT_EQ(Take(11), nullptr);
  EXPECT_TRUE(cache_.Put(&run));
  EXPECT_EQ(cache_.cached_bytes(), 11 * kUnit);
  EXPECT_EQ(Take(8), nullptr);
  EXPECT_EQ(Take(12), nullptr);
  EXPECT_EQ(Take(11), &run);
  EXPECT_TRUE(run.IsInUse());
  EXPECT_FALSE(run.zeroed) << "the program wrote to it";
  EXPECT_EQ(Take(11), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 0u);
}

TEST_F(RunCacheTest, NotesInARunWhatListItIsOf) {
  PageRun run;
  Make(&run, 10);
  EXPECT_GE(RunCache::NotedListOfRun(&run), RunCache::kLists) << "nobody looked";
  EXPECT_TRUE(cache_.Put(&run));
  EXPECT_EQ(Take(10), &run);
  EXPECT_EQ(RunCache::NotedListOfRun(&run), RunCache::ListFor(10 * kUnit));
  PageRun larger;
  Make(&larger, 18);
  EXPECT_FALSE(cache_.Put(&larger));
  EXPECT_GE(RunCache::NotedListOfRun(&larger), RunCache::kLists) << "of none";
}

TEST_F(RunCacheTest, GivesTheRunThatWasPutInLastBackFirst) {
  std::array<PageRun, 3> runs;
  for (PageRun& run : runs) {
    Make(&run, 8);
    EXPECT_TRUE(cache_.Put(&run));
  }
  PageRun other;
  Make(&other, 7);
  EXPECT_TRUE(cache_.Put(&other));
  for (size_t i = runs.size(); i-- > 0;) EXPECT_EQ(Take(8), &runs[i]);
  EXPECT_EQ(Take(8), nullptr);
  EXPECT_EQ(Take(7), &other);
}

TEST_F(RunCacheTest, OneOfTheNextTwoSizesServesToo) {
  std::array<PageRun, 3> runs;
  Make(&runs[0], 11);
  Make(&runs[1], 10);
  Make(&runs[2], 9);
  for (PageRun& run : runs) EXPECT_TRUE(cache_.Put(&run));
  EXPECT_EQ(Take(16), nullptr) << "there is no larger list";
  EXPECT_EQ(Take(12), nullptr);
  EXPECT_EQ(Take(9), &runs[2]) << "one of its own first";
  PageRun* const first = Take(9);
  EXPECT_EQ(first, &runs[1]) << "the smaller one first";
  EXPECT_TRUE(first->IsInUse());
  EXPECT_EQ(cache_.cached_bytes(), runs[0].bytes());
  EXPECT_EQ(Take(8), nullptr);
  EXPECT_EQ(Take(9), &runs[0]);
  EXPECT_EQ(Take(9), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 0u);
}

// Against lists that are looked through one by one.
TEST_F(RunCacheTest, TakesWhatAModelTakes) {
  std::mt19937 random(TestSeed());
  std::array<PageRun, 8> runs;
  std::vector<PageRun*> free;
  for (PageRun& run : runs) free.push_back(&run);
  std::array<std::vector<PageRun*>, 17> lists;  // By units.
  size_t served_by_larger = 0;
  for (int step = 0; step < 20'000; ++step) {
    const size_t units = 8 + random() % 9;
    if (random() % 2 == 0 && !free.empty()) {
      PageRun* const run = free.back();
      Make(run, units);
      if (cache_.cached_bytes() + run->bytes() > 32 * kUnit) continue;
      free.pop_back();
      ASSERT_TRUE(cache_.Put(run));
      lists[units].push_back(run);
      continue;
    }
    PageRun* wanted = nullptr;
    for (size_t i = units; i <= std::min<size_t>(units + kLargerMediums, 16); ++i) {
      if (lists[i].empty()) continue;
      wanted = lists[i].back();
      lists[i].pop_back();
      served_by_larger += i != units;
      break;
    }
    ASSERT_EQ(Take(units), wanted) << units;
    if (step % 100 == 0) cache_.Verify();
    if (wanted != nullptr) free.push_back(wanted);
  }
  EXPECT_GT(served_by_larger, 100u) << "or the test is of little use";
  while (cache_.PopAbove(0) != nullptr) {
  }
}

TEST_F(RunCacheTest, AnyOfTheLatestRunsOfAListCanBeTakenOut) {
  // One more than is looked at.
  constexpr size_t kRuns = RunCache::kMostLooks + 1;
  std::array<PageRun, kRuns> runs;
  for (PageRun& run : runs) {
    MakePages(&run, PagesFor(20 * kKiB * (PageBytes() / 4096)));
    ASSERT_TRUE(cache_.Put(&run));
  }
  const size_t bytes = runs[0].bytes();
  PageRun other;
  MakePages(&other, runs[0].pages);
  EXPECT_FALSE(cache_.TryRemove(&other, bytes));
  EXPECT_FALSE(cache_.TryRemove(&runs[1], 10 * kUnit)) << "of another list";
  EXPECT_FALSE(cache_.TryRemove(&runs[1], PageBytes() / 2)) << "of none";
  EXPECT_FALSE(cache_.TryRemove(&runs[0], bytes)) << "put in too long ago";
  std::vector<size_t> left;
  for (size_t i = 0; i < kRuns; ++i) left.push_back(i);
  // The oldest that is looked at, one between, the top.
  for (const size_t i : {size_t{1}, size_t{20}, kRuns - 1}) {
    EXPECT_TRUE(cache_.TryRemove(&runs[i], bytes)) << i;
    EXPECT_EQ(runs[i].state, PageRun::kCached);
    EXPECT_FALSE(cache_.TryRemove(&runs[i], bytes)) << i;
    std::erase(left, i);
    EXPECT_EQ(cache_.cached_bytes(), left.size() * bytes);
  }
  const size_t list = RunCache::ListOfRun(bytes);
  for (size_t i = left.size(); i-- > 0;) {
    EXPECT_EQ(RunAt(cache_.Take(list)), &runs[left[i]]);
  }
  EXPECT_FALSE(cache_.TryRemove(&runs[0], bytes)) << "the list is empty";
}

// What a request may get as size_classes.h has it, and here.
TEST_F(RunCacheTest, NoRunIsLargerThanTheRequestMayGet) {
  for (size_t bytes = kSlabsOnlyMaxBytes + 1; bytes <= RunCache::kMostRunBytes;
       bytes += PageBytes()) {
    const size_t list = RunCache::ListFor(bytes);
    ASSERT_EQ(list, RunCache::ListOfRun(MediumBytes(bytes))) << bytes;
    const size_t most = MostMediumBytes(bytes);
    if (most >= RunCache::kMostRunBytes) continue;
    ASSERT_EQ(RunCache::ListFor(most), list + kLargerMediums) << bytes;
    ASSERT_GT(RunCache::ListFor(most + 1), list + kLargerMediums) << bytes;
  }
}

TEST_F(RunCacheTest, TheShortWayEvictsNone) {
  std::array<PageRun, RunCache::kMostBytes / (8 * kUnit) + 1> runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    Make(&runs[i], 8);
    runs[i].state = PageRun::kInUse;
    EXPECT_EQ(PutInRoom(&runs[i]), i + 1 < runs.size());
  }
  EXPECT_EQ(runs.front().state, PageRun::kCached);
  EXPECT_EQ(runs.back().state, PageRun::kInUse);
  EXPECT_EQ(cache_.cached_bytes(), RunCache::kMostBytes);
  while (cache_.PopAbove(0) != nullptr) {
  }
}

TEST_F(RunCacheTest, ALargeRunIsKeptAlone) {
  std::array<PageRun, 2> small;
  for (PageRun& run : small) MakePages(&run, PagesFor(20 * kKiB * (PageBytes() / 4096)));
  PageRun large;
  Make(&large, 16);
  ASSERT_GT(large.bytes(), RunCache::kMostBytes);
  EXPECT_TRUE(PutInRoom(&small[0]));
  EXPECT_FALSE(PutInRoom(&large));
  EXPECT_EQ(cache_.PopToFit(small[1].bytes()), nullptr);
  EXPECT_EQ(cache_.PopToFit(large.bytes()), &small[0]);
  EXPECT_EQ(cache_.PopToFit(large.bytes()), nullptr);
  EXPECT_TRUE(PutInRoom(&large));
  EXPECT_EQ(cache_.cached_bytes(), large.bytes());
  EXPECT_FALSE(PutInRoom(&small[0]));
  EXPECT_EQ(cache_.PopToFit(small[0].bytes()), &large);
}

TEST_F(RunCacheTest, KeepsNoRunOfAnotherSize) {
  PageRun run;
  Make(&run, 16);
  ASSERT_EQ(run.bytes(), RunCache::kMostRunBytes);
  EXPECT_TRUE(cache_.Put(&run));
  PageRun larger;
  Make(&larger, 18);
  EXPECT_FALSE(cache_.Put(&larger));
  PageRun odd;
  MakePages(&odd, PagesFor(9 * kUnit) + 1);
  EXPECT_FALSE(cache_.Put(&odd));
  PageRun page;
  MakePages(&page, 1);
  EXPECT_EQ(cache_.Put(&page), PageBytes() > kSlabsOnlyMaxBytes);
  EXPECT_TRUE(cache_.HasRun(RunCache::ListFor(16 * kUnit)));
  while (cache_.PopAbove(0) != nullptr) {
  }
}

TEST_F(RunCacheTest, ListsAreEvictedFromInTurn) {
  std::array<PageRun, 6> runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    Make(&runs[i], 8 + i / 2);
    EXPECT_TRUE(cache_.Put(&runs[i]));
  }
  // The last of each list, and then what was before it.
  for (const size_t i : {1u, 3u, 5u, 0u, 2u}) {
    EXPECT_EQ(cache_.PopAbove(0), &runs[i]);
  }
  EXPECT_TRUE(cache_.Put(&runs[1]));
  EXPECT_EQ(cache_.PopAbove(0), &runs[4]);
  EXPECT_EQ(cache_.PopAbove(0), &runs[1]);
  EXPECT_EQ(cache_.PopAbove(0), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 0u);
}

TEST_F(RunCacheTest, PopsRunsUntilAsManyBytesAreLeft) {
  std::array<PageRun, 4> runs;
  for (PageRun& run : runs) {
    Make(&run, 10);
    EXPECT_TRUE(cache_.Put(&run));
  }
  EXPECT_EQ(cache_.PopAbove(40 * kUnit), nullptr);
  EXPECT_NE(cache_.PopAbove(25 * kUnit), nullptr);
  EXPECT_NE(cache_.PopAbove(25 * kUnit), nullptr);
  EXPECT_EQ(cache_.PopAbove(25 * kUnit), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 20 * kUnit);
  while (cache_.PopAbove(0) != nullptr) {
  }
}

TEST_F(RunCacheTest, IdleRunsArePoppedOneByOne) {
  std::array<PageRun, 3> runs;
  for (PageRun& run : runs) {
    Make(&run, 10);
    EXPECT_TRUE(cache_.Put(&run));
  }
  EXPECT_EQ(cache_.PopIdle(), nullptr) << "put in since the last call";
  EXPECT_EQ(cache_.PopIdle(), &runs[2]);
  EXPECT_TRUE(Steal().empty()) << "for that the owner has not been idle";
  EXPECT_EQ(cache_.PopIdle(), &runs[1]) << "nor is it busy for having been asked";
  EXPECT_TRUE(cache_.Put(&runs[2]));
  EXPECT_EQ(cache_.PopIdle(), nullptr);
  EXPECT_NE(cache_.PopIdle(), nullptr);
  EXPECT_NE(cache_.PopIdle(), nullptr);
  EXPECT_EQ(cache_.PopIdle(), nullptr);
  EXPECT_EQ(cache_.cached_bytes(), 0u);
}

TEST_F(RunCacheTest, RunsAreStolenFromAnIdleOwnerAlone) {
  PageRun run;
  Make(&run, 8);
  EXPECT_TRUE(Steal().empty());
  EXPECT_FALSE(left_) << "there is nothing";
  EXPECT_TRUE(cache_.Put(&run));
  EXPECT_TRUE(Steal().empty());
  EXPECT_TRUE(left_) << "put in since the last call";
  EXPECT_EQ(Take(8), &run);
  run.state = PageRun::kCached;
  EXPECT_TRUE(cache_.Put(&run));
  EXPECT_TRUE(Steal().empty());
  EXPECT_TRUE(left_);
  EXPECT_EQ(Steal(), std::vector<PageRun*>{&run});
  EXPECT_FALSE(left_);
  EXPECT_EQ(run.state, PageRun::kCached) << "the arena takes it so";
  EXPECT_EQ(Take(8), nullptr);
}

// A loop with one buffer does not keep what was freed before it.
TEST_F(RunCacheTest, WhatABusyOwnerDidNotWantIsStolen) {
  std::array<PageRun, 4> runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    Make(&runs[i], 8 + i);
    EXPECT_TRUE(cache_.Put(&runs[i]));
  }
  EXPECT_TRUE(Steal().empty()) << "put in since the last call";
  PageRun* const run = Take(11);
  ASSERT_EQ(run, &runs[3]);
  run->state = PageRun::kCached;
  EXPECT_TRUE(cache_.Put(run));
  EXPECT_EQ(Steal(), (std::vector<PageRun*>{&runs[0], &runs[1], &runs[2]}));
  EXPECT_TRUE(left_);
  EXPECT_EQ(cache_.cached_bytes(), run->bytes());
  EXPECT_EQ(Take(11), run);
}

TEST_F(RunCacheTest, TheOwnerNeedNotWaitForManyRuns) {
  if (PageBytes() > 4096) GTEST_SKIP() << "too few runs of the least size fit";
  std::vector<PageRun> runs(RunCache::kMostStolen + 10);
  for (PageRun& run : runs) {
    MakePages(&run, 5);
    EXPECT_TRUE(cache_.Put(&run));
  }
  EXPECT_TRUE(Steal().empty());
  EXPECT_EQ(Steal().size(), RunCache::kMostStolen);
  EXPECT_TRUE(left_);
  EXPECT_EQ(Steal().size(), 10u);
  EXPECT_FALSE(left_);
}

// As two threads that free it at the same time may, in each order.
TEST_F(RunCacheTest, ARunThatTwoOwnersPutInIsReported) {
  for (const bool first_takes_first : {true, false}) {
    RunCache other;
    PageRun before, other_before, twice;
    for (PageRun* run : {&before, &other_before, &twice}) Make(run, 8);
    const auto put_in_twice_and_empty = [&] {
      (void)cache_.Put(&before);
      (void)other.Put(&other_before);
      (void)cache_.Put(&twice);
      (void)other.Put(&twice);
      for (RunCache* cache : {first_takes_first ? &cache_ : &other,
                              first_takes_first ? &other : &cache_}) {
        while (cache->PopAbove(0) != nullptr) {
        }
      }
    };
    EXPECT_EXIT(put_in_twice_and_empty(),
                testing::KilledBySignal(SIGABRT), "a large block that is already free");
  }
}

TEST_F(RunCacheTest, WhatIsUrgentIsStolenAtOnce) {
  PageRun run;
  Make(&run, 8);
  EXPECT_TRUE(cache_.Put(&run));
  PageRun* stolen = nullptr;
  EXPECT_FALSE(cache_.StealIdle(true, [&](PageRun* r) { stolen = r; }));
  EXPECT_EQ(stolen, &run);
  EXPECT_EQ(Take(8), nullptr);
}

}  // namespace
}  // namespace quarry
