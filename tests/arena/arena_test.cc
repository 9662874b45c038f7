#include "arena/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "arena/clock.h"
#include "arena/limits.h"
#include "arena/maintenance_signal.h"
#include "arena/metadata.h"
#include "arena/page_map.h"
#include "arena/page_source.h"
#include "arena/run.h"
#include "arena/segment.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/arena/scripted_page_source.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

using Kind = ScriptedPageSource::Kind;

// Inside a fixture, Run is a member of testing::Test.
using PageRun = Run;

constexpr size_t kMiB = size_t{1} << 20;

// Pages from regions that it reserves. Each mapping lies below the last, at a
// distance that a test sets, where the kernel does as it likes.
//
// Thread-safety: Purge() and advice on any thread, all else on one at a time.
class PlacedPageSource final : public PageSource {
 public:
  // No mapping of it touches another, unless a test wants so.
  size_t gap_bytes = kGranuleBytes;

  // It has no addresses for more.
  size_t most_alignment = SIZE_MAX;

  // Recorded by AdviseHugePages() and AdviseSmallPages().
  std::vector<std::pair<char*, size_t>> huge_pages, small_pages;

  // Whether the system has any.
  bool has_huge_pages = true;

  // Whether the program has touched the ranges that are on small pages.
  bool ranges_are_filled = false;

  // Called within the next purge, before it has an effect; and when huge pages
  // are next asked for.
  std::function<void()> during_purge, during_advice;

  PlacedPageSource() = default;
  ~PlacedPageSource() {
    for (char* region : regions_) os_.Unmap(region, kRegionBytes);
  }

 private:
  static constexpr size_t kRegionBytes = size_t{1} << 30;

  void* MapPages(size_t bytes, size_t alignment) override {
    if (alignment > most_alignment || bytes + alignment > kRegionBytes) {
      return nullptr;
    }
    char* start = PlaceBelow(bytes, alignment);
    if (regions_.empty() || start < regions_.back()) {
      void* const region = os_.Map(kRegionBytes, 1);
      if (region == nullptr) return nullptr;
      regions_.push_back(static_cast<char*>(region));
      next_end_ = regions_.back() + kRegionBytes;
      start = PlaceBelow(bytes, alignment);
    }
    next_end_ = start - gap_bytes;
    return start;
  }
  void UnmapPages(void* start, size_t bytes) override {
    ASSERT_TRUE(os_.PurgeToZero(start, bytes));
  }
  bool PurgePages(void* start, size_t bytes) override {
    if (const auto call = std::exchange(during_purge, nullptr)) call();
    return os_.PurgeToZero(start, bytes);
  }
  void AdviseSmallPages(void* start, size_t bytes) override {
    Record(start, bytes, &small_pages);
  }
  void AdviseHugePages(void* start, size_t bytes) override {
    Record(start, bytes, &huge_pages);
    if (const auto call = std::exchange(during_advice, nullptr)) call();
  }
  void Record(void* start, size_t bytes,
              std::vector<std::pair<char*, size_t>>* ranges) {
    std::lock_guard hold(mutex_);
    ranges->emplace_back(static_cast<char*>(start), bytes);
  }
  size_t ResidentBytes(void*, size_t bytes) override {
    if (bytes == kHugePageBytes) return ranges_are_filled ? bytes : 0;
    return has_huge_pages ? bytes : 0;
  }

  char* PlaceBelow(size_t bytes, size_t alignment) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(next_end_) - bytes;
    return reinterpret_cast<char*>(start & ~(alignment - 1));
  }

  OsPageSource os_;
  std::mutex mutex_;
  std::vector<char*> regions_;
  char* next_end_ = nullptr;
};

// As in a process where none was ever wanted.
void ForgetMaintenanceThread() {
  maintenance_signal.FallAsleep();
  maintenance_signal.ResetAfterFork();
}

// What tests change and the process shares.
class SettingsSaver {
 public:
  ~SettingsSaver() {
    settings.trim_threshold_bytes = trim_threshold_bytes_;
    settings.decay_ms = decay_ms_;
    settings.mmap_threshold_adapts = true;
    settings.huge_pages = HugePagePolicy::kGrown;
    ForgetMaintenanceThread();
  }

 private:
  const size_t trim_threshold_bytes_ = settings.trim_threshold_bytes;
  const size_t decay_ms_ = settings.decay_ms;
};

class ArenaTest : public testing::Test {
 protected:
  // Every test ends with an empty arena that holds nothing of the OS's.
  ~ArenaTest() override {
    settings.decay_ms = 500;
    source_.RefuseNothing();
    arena_.Verify();
    EXPECT_EQ(arena_.statistics().in_use_bytes, 0u);
    arena_.Purge(0);
    arena_.Verify();
    EXPECT_EQ(arena_.statistics(), Arena::Statistics());
    EXPECT_EQ(source_.statistics().mapped_bytes, 0u);
  }

  PageRun* Allocate(size_t pages, size_t alignment = 1) {
    PageRun* const run = arena_.Allocate(pages, alignment);
    if (run == nullptr) return nullptr;
    EXPECT_EQ(run->pages, pages);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(run->start) % alignment, 0u);
    EXPECT_EQ(Arena::RunOf(run->start), run);
    EXPECT_EQ(run->arena(), &arena_);
    return run;
  }

  void Deallocate(std::initializer_list<PageRun*> runs) {
    for (PageRun* run : runs) arena_.Deallocate(run);
  }

  void Fill(PageRun* run, char c) { memset(run->start, c, run->bytes()); }

  SettingsSaver settings_saver_;
  ScriptedPageSource source_;
  OsPageSource metadata_source_;
  MetadataPool metadata_{metadata_source_};
  Arena arena_{source_, metadata_, 7};
};

using ArenaDeathTest = ArenaTest;

TEST_F(ArenaTest, MapsNothingBeforeItIsAsked) {
  EXPECT_EQ(arena_.index(), 7u);
  EXPECT_EQ(arena_.statistics(), Arena::Statistics());
  EXPECT_TRUE(source_.calls().empty());
  arena_.Verify();
}

TEST_F(ArenaTest, ConsecutiveRequestsLieSideBySide) {
  PageRun* const a = Allocate(3);
  PageRun* const b = Allocate(5);
  PageRun* const c = Allocate(100);
  EXPECT_EQ(a->end(), b->start);
  EXPECT_EQ(b->end(), c->start);
  EXPECT_TRUE(a->zeroed && b->zeroed && c->zeroed);
  EXPECT_EQ(arena_.statistics().segments, 1u);
  EXPECT_EQ(arena_.statistics().mapped_bytes, Arena::kFirstSegmentBytes);
  EXPECT_EQ(arena_.statistics().in_use_bytes, 108 * PageBytes());
  arena_.Verify();
  Deallocate({a, b, c});
}

// The kernel placed a mapping below what was in use, say: neither end of what is free was
// touched.
TEST_F(ArenaTest, ARequestTakesTheEndOfWhatIsResidentWhereMoreIsThanAtTheLowEnd) {
  PageRun* const clean = Allocate(20);
  PageRun* const used = Allocate(60);
  char* const start = clean->start;
  arena_.Deallocate(clean, 0);
  Deallocate({used});
  const auto first_page_of = [&](size_t pages, size_t alignment = 1) {
    PageRun* const run = Allocate(pages, alignment);
    const auto page = (run->start - start) / static_cast<ptrdiff_t>(PageBytes());
    arena_.Verify();
    arena_.Deallocate(run, 0);
    arena_.Verify();
    return page;
  };
  EXPECT_EQ(first_page_of(1), 79);
  EXPECT_EQ(first_page_of(60), 20);
  EXPECT_EQ(first_page_of(70), 10);
  EXPECT_EQ(first_page_of(16, 16 * PageBytes()), 64);
  // At the low end as many are.
  EXPECT_EQ(first_page_of(80), 0);
  EXPECT_EQ(first_page_of(100), 0);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 60 * PageBytes());
}

TEST_F(ArenaTest, ARequestTakesTheLowEndWhereAsMuchIsResident) {
  PageRun* const low = Allocate(10);
  PageRun* const clean = Allocate(10);
  PageRun* const high = Allocate(10);
  char* const start = low->start;
  Deallocate({low, high});
  arena_.Deallocate(clean, 0);
  PageRun* const run = Allocate(10);
  EXPECT_EQ(run->start, start);
  PageRun* const other = Allocate(10);
  EXPECT_EQ(other->start, start + 20 * PageBytes());
  Deallocate({run, other});
}

TEST_F(ArenaTest, JoinsWithBothNeighbours) {
  PageRun* const a = Allocate(3);
  PageRun* const b = Allocate(4);
  PageRun* const c = Allocate(5);
  PageRun* const guard = Allocate(1);
  char* const start = a->start;
  Deallocate({a, c});
  EXPECT_EQ(arena_.statistics().free_runs, 3u);
  Deallocate({b});
  EXPECT_EQ(arena_.statistics().free_runs, 2u);
  PageRun* const whole = Allocate(12);
  EXPECT_EQ(whole->start, start);
  EXPECT_EQ(whole->bin, 0u) << "and not that of the arena";
  Deallocate({whole, guard});
  EXPECT_EQ(arena_.statistics().free_runs, 1u);
}

TEST_F(ArenaTest, AnExactFitServesBeforeTheVictim) {
  PageRun* const hole = Allocate(6);
  PageRun* const guard_1 = Allocate(1);
  PageRun* const large = Allocate(20);
  PageRun* const guard_2 = Allocate(1);
  char* const hole_start = hole->start;
  char* const large_start = large->start;
  Deallocate({hole, large});
  PageRun* const cut = Allocate(8);  // From `large`; its rest is the victim.
  EXPECT_EQ(cut->start, large_start);
  PageRun* const next = Allocate(2);  // No exact fit: the victim.
  EXPECT_EQ(next->start, cut->end());
  PageRun* const exact = Allocate(6);
  EXPECT_EQ(exact->start, hole_start);
  arena_.Verify();
  Deallocate({cut, next, exact, guard_1, guard_2});
}

TEST_F(ArenaTest, ALargeRequestTakesTheBestFit) {
  std::vector<PageRun*> guards;
  std::map<size_t, char*> holes;
  std::vector<PageRun*> freed;
  for (size_t pages : {60, 40, 50}) {
    freed.push_back(Allocate(pages));
    holes[pages] = freed.back()->start;
    guards.push_back(Allocate(1));
  }
  for (PageRun* run : freed) arena_.Deallocate(run);
  PageRun* const of_45 = Allocate(45);
  PageRun* const of_40 = Allocate(40);
  PageRun* const of_55 = Allocate(55);
  EXPECT_EQ(of_45->start, holes[50]);
  EXPECT_EQ(of_40->start, holes[40]);
  EXPECT_EQ(of_55->start, holes[60]);
  Deallocate({of_45, of_40, of_55});
  for (PageRun* run : guards) arena_.Deallocate(run);
}

TEST_F(ArenaTest, ALargeRequestTakesTheVictimWhereItFitsBetter) {
  PageRun* const of_200 = Allocate(200);
  PageRun* const guard_1 = Allocate(1);
  PageRun* const of_100 = Allocate(100);
  PageRun* const guard_2 = Allocate(1);
  Deallocate({of_100});
  PageRun* const cut = Allocate(10);  // Leaves a victim of 90 pages.
  Deallocate({of_200});
  PageRun* const of_80 = Allocate(80);
  EXPECT_EQ(of_80->start, cut->end());
  PageRun* const of_30 = Allocate(30);  // The victim has but 10 left.
  EXPECT_LT(of_30->start, guard_1->start);
  arena_.Verify();
  Deallocate({cut, of_80, of_30, guard_1, guard_2});
}

TEST_F(ArenaTest, TopIsCutLastAlsoAfterAJoin) {
  const size_t all = Arena::kFirstSegmentBytes / PageBytes();
  if (all < 200) GTEST_SKIP() << "the first segment has few pages";
  PageRun* const hole = Allocate(100);
  PageRun* const filler = Allocate(all - 130);
  PageRun* const before_top = Allocate(10);
  char* const hole_start = hole->start;
  Deallocate({before_top, hole});  // Top has 30 pages, the hole 100.
  PageRun* const run = Allocate(5);
  EXPECT_EQ(run->start, hole_start);
  arena_.Verify();
  Deallocate({run, filler});
}

TEST_F(ArenaTest, AlignsWithoutWaste) {
  for (size_t alignment = 1; alignment <= 64 * kMiB; alignment *= 4) {
    PageRun* const crooked = Allocate(1);
    PageRun* const run = Allocate(16, alignment);
    ASSERT_NE(run, nullptr);
    EXPECT_EQ(arena_.statistics().in_use_bytes, 17 * PageBytes());
    arena_.Verify();
    Deallocate({crooked, run});
  }
}

TEST_F(ArenaTest, SlabsFillAlignedHolesBeforeTheySplitLargerRuns) {
  const size_t slab_pages = RoundUp(kGranuleBytes, PageBytes()) / PageBytes();
  std::vector<PageRun*> slabs;
  for (int i = 0; i < 41; ++i) {
    slabs.push_back(Allocate(slab_pages, kGranuleBytes));
  }
  std::vector<char*> holes;
  for (int i = 1; i < 40; i += 2) {
    holes.push_back(slabs[i]->start);
    arena_.Deallocate(slabs[i]);
  }
  const Arena::Statistics before = arena_.statistics();
  for (int i = 1; i < 40; i += 2) {
    slabs[i] = Allocate(slab_pages, kGranuleBytes);
    EXPECT_EQ(std::count(holes.begin(), holes.end(), slabs[i]->start), 1);
  }
  EXPECT_EQ(arena_.statistics().free_runs, before.free_runs - holes.size());
  for (PageRun* slab : slabs) arena_.Deallocate(slab);
}

TEST_F(ArenaTest, KnowsWhichPagesAreZero) {
  PageRun* const first = Allocate(10);
  ASSERT_TRUE(first->zeroed);
  Fill(first, 1);
  char* const start = first->start;
  Deallocate({first});
  EXPECT_EQ(arena_.statistics().free_dirty_bytes, 10 * PageBytes());

  PageRun* const reused = Allocate(10);
  EXPECT_EQ(reused->start, start);
  EXPECT_FALSE(reused->zeroed);
  EXPECT_EQ(arena_.statistics().free_dirty_bytes, 0u);

  // What lies behind was never touched, although it was joined with dirty
  // pages in between.
  PageRun* const fresh = Allocate(10);
  EXPECT_EQ(fresh->start, reused->end());
  EXPECT_TRUE(fresh->zeroed);
  Deallocate({fresh, reused});

  EXPECT_EQ(arena_.Purge(Arena::kFirstSegmentBytes), 0u);
  EXPECT_EQ(arena_.Purge(1), 20 * PageBytes());
  EXPECT_EQ(arena_.statistics().free_dirty_bytes, 0u);
  PageRun* const purged = Allocate(10);
  EXPECT_EQ(purged->start, start);
  EXPECT_TRUE(purged->zeroed);
  EXPECT_EQ(purged->start[0], 0);
  Deallocate({purged});
}

TEST_F(ArenaTest, AGrownRunIsZeroIfWhatItHasMoreIs) {
  PageRun* const run = Allocate(4);
  ASSERT_TRUE(run->zeroed);
  ASSERT_EQ(arena_.TryGrow(run, 6, 6), 6u);
  EXPECT_TRUE(run->zeroed);
  PageRun* const next = Allocate(6);
  ASSERT_EQ(run->end(), next->start);
  Deallocate({next});
  ASSERT_EQ(arena_.TryGrow(run, 8, 8), 8u);
  EXPECT_FALSE(run->zeroed);
  Deallocate({run});
}

TEST_F(ArenaTest, GrowsIntoTheFreeNeighbour) {
  PageRun* const run = Allocate(4);
  PageRun* const next = Allocate(6);
  PageRun* const guard = Allocate(1);
  Fill(run, 5);
  EXPECT_EQ(arena_.TryGrow(run, 5, 5), 0u);
  EXPECT_EQ(arena_.TryGrow(run, 4, 5), 4u);
  Deallocate({next});
  EXPECT_EQ(arena_.TryGrow(run, 11, 20), 0u);
  EXPECT_EQ(arena_.TryGrow(run, 4, 4), 4u);
  EXPECT_EQ(run->pages, 4u);
  EXPECT_EQ(run->bin, 0u);
  run->bin = 3;
  ASSERT_EQ(arena_.TryGrow(run, 6, 7), 7u);
  EXPECT_EQ(run->bin, 0u) << "what was noted of its length";
  arena_.Verify();
  EXPECT_EQ(run->pages, 7u);
  ASSERT_EQ(arena_.TryGrow(run, 8, 20), 10u);
  arena_.Verify();
  EXPECT_EQ(run->end(), guard->start);
  EXPECT_EQ(run->start[4 * PageBytes() - 1], 5);
  Fill(run, 6);
  Deallocate({run, guard});
}

TEST_F(ArenaTest, KnowsWhatAThreadKeepsBehindARun) {
  PageRun* const run = Allocate(4);
  PageRun* const next = Allocate(6);
  PageRun* const kept = Allocate(5);
  PageRun* const guard = Allocate(1);
  size_t bytes = 0;
  EXPECT_EQ(arena_.KeptBehind(run, 5, &bytes), nullptr) << "it is in use";
  next->state = PageRun::kCached;
  EXPECT_EQ(arena_.KeptBehind(run, 10, &bytes), next);
  EXPECT_EQ(bytes, 6 * PageBytes());
  EXPECT_EQ(arena_.KeptBehind(run, 11, &bytes), nullptr) << "not enough";
  kept->state = PageRun::kCached;
  EXPECT_EQ(arena_.KeptBehind(run, 15, &bytes), next) << "the first of them";
  EXPECT_EQ(arena_.KeptBehind(run, 16, &bytes), nullptr);
  next->state = PageRun::kInUse;
  Deallocate({next});
  EXPECT_EQ(arena_.KeptBehind(run, 10, &bytes), nullptr) << "needs none kept";
  EXPECT_EQ(arena_.KeptBehind(run, 11, &bytes), kept) << "behind the free one";
  EXPECT_EQ(bytes, 5 * PageBytes());
  kept->state = PageRun::kInUse;
  EXPECT_EQ(arena_.KeptBehind(run, 11, &bytes), nullptr);
  ASSERT_NE(arena_.TryGrow(guard, 2, Arena::kFirstSegmentBytes / PageBytes()),
            0u);
  EXPECT_EQ(arena_.KeptBehind(guard, guard->pages + 1, &bytes), nullptr)
      << "at the end";
  Deallocate({run, kept, guard});
}

TEST_F(ArenaTest, GrowsIntoTopAndToTheEndOfTheSegment) {
  PageRun* const run = Allocate(1);
  const size_t all = Arena::kFirstSegmentBytes / PageBytes();
  ASSERT_EQ(arena_.TryGrow(run, 50, 100), 100u);
  arena_.Verify();
  EXPECT_EQ(arena_.TryGrow(run, all + 1, all + 2), 0u);
  ASSERT_EQ(arena_.TryGrow(run, 100, all + 1), all);
  arena_.Verify();
  EXPECT_EQ(arena_.statistics().free_runs, 0u);
  EXPECT_EQ(arena_.TryGrow(run, all + 1, all + 1), 0u);
  Deallocate({run});
}

TEST_F(ArenaTest, ShrinksFromTheEnd) {
  PageRun* const run = Allocate(20);
  PageRun* const guard = Allocate(1);
  arena_.Shrink(run, 20);
  run->bin = 3;
  arena_.Shrink(run, 5);
  arena_.Verify();
  EXPECT_EQ(run->pages, 5u);
  EXPECT_EQ(run->bin, 0u) << "what was noted of its length";
  EXPECT_EQ(Arena::RunOf(run->start), run);
  PageRun* const rest = Allocate(15);
  EXPECT_EQ(rest->start, run->end());
  arena_.Shrink(rest, 1);
  arena_.Shrink(run, 1);
  arena_.Verify();
  Deallocate({run, rest, guard});
}

TEST_F(ArenaTest, SegmentsDoubleUpToTheLargest) {
  std::vector<PageRun*> runs;
  std::vector<size_t> sizes;
  while (sizes.size() < 7) {
    runs.push_back(Allocate(kMiB / PageBytes()));
    sizes.clear();
    for (const auto& call : source_.calls()) {
      if (call.kind == Kind::kMap) sizes.push_back(call.bytes / kMiB);
    }
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{4, 8, 16, 32, 64, 64, 64}));
  for (PageRun* run : runs) arena_.Deallocate(run);
}

TEST_F(ArenaTest, ARequestLargerThanASegmentGetsItsOwn) {
  PageRun* const run = Allocate(100 * kMiB / PageBytes());
  ASSERT_NE(run, nullptr);
  EXPECT_EQ(arena_.statistics().mapped_bytes, 100 * kMiB);
  EXPECT_EQ(arena_.statistics().free_runs, 0u);
  Deallocate({run});
}

TEST_F(ArenaTest, TakesASmallerSegmentWhenALargeOneIsRefused) {
  source_.RefuseMapsAbove(300 << 10);
  PageRun* const run = Allocate(1);
  ASSERT_NE(run, nullptr);
  EXPECT_LE(arena_.statistics().mapped_bytes, size_t{300} << 10);
  EXPECT_EQ(Allocate(kMiB / PageBytes()), nullptr);
  arena_.Verify();
  Deallocate({run});
}

TEST_F(ArenaTest, RefusesAbsurdRequests) {
  EXPECT_EQ(arena_.Allocate(~size_t{0}, 1), nullptr);
  EXPECT_EQ(arena_.Allocate(~size_t{0} / PageBytes(), 1), nullptr);
  EXPECT_EQ(arena_.Allocate((size_t{1} << 30) + 1, 1), nullptr);
  EXPECT_EQ(arena_.Allocate(1, size_t{1} << 62), nullptr);
}

TEST_F(ArenaTest, PurgesByItselfWhenTooMuchIsDirty) {
  settings.trim_threshold_bytes = 8 * kMiB;
  std::vector<PageRun*> runs, guards;
  for (int i = 0; i < 10; ++i) {
    runs.push_back(Allocate(kMiB / PageBytes()));
    guards.push_back(Allocate(1));
  }
  for (int i = 0; i < 8; ++i) arena_.Deallocate(runs[i]);
  EXPECT_EQ(arena_.statistics().free_dirty_bytes, 8 * kMiB);
  EXPECT_EQ(source_.CountOf(Kind::kPurge), 0u);
  arena_.Deallocate(runs[8]);
  EXPECT_LE(arena_.statistics().free_dirty_bytes, 4 * kMiB);
  EXPECT_GT(arena_.statistics().free_dirty_bytes, 2 * kMiB);
  arena_.Verify();
  arena_.Deallocate(runs[9]);
  for (PageRun* run : guards) arena_.Deallocate(run);
}

// Unless the user says what, or nobody would give it back in time.
TEST_F(ArenaTest, KeepsHalfOfWhatIsInUse) {
  settings.trim_threshold_bytes = 2 * kMiB;
  PageRun* const large = Allocate(20 * kMiB / PageBytes());
  std::vector<PageRun*> runs, guards;
  for (int i = 0; i < 11; ++i) {
    runs.push_back(Allocate(kMiB / PageBytes()));
    guards.push_back(Allocate(1));
  }
  for (int i = 0; i < 10; ++i) arena_.Deallocate(runs[i]);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 10 * kMiB);
  EXPECT_EQ(arena_.PurgeOverCap(), 0u);

  maintenance_signal.TurnOff();
  EXPECT_EQ(arena_.PurgeOverCap(kMiB), kMiB);
  ForgetMaintenanceThread();
  EXPECT_EQ(arena_.PurgeOverCap(), 0u);
  settings.mmap_threshold_adapts = false;
  EXPECT_EQ(arena_.PurgeOverCap(), 8 * kMiB);
  EXPECT_EQ(arena_.FreeDirtyBytes(), kMiB);
  arena_.Deallocate(runs[10]);
  for (PageRun* guard : guards) arena_.Deallocate(guard);
  arena_.Deallocate(large, 0);
}

// A program that frees much and takes as much again, in a loop.
TEST_F(ArenaTest, KeepsWhatItPurgedInVain) {
  settings.trim_threshold_bytes = 8 * kMiB;
  settings.decay_ms = 10'000'000;
  const auto purges_of_a_round = [&] {
    source_.ForgetCalls();
    std::vector<PageRun*> runs(40);
    for (PageRun*& run : runs) run = Allocate(kMiB / PageBytes());
    for (PageRun* run : runs) arena_.Deallocate(run);
    return source_.CountOf(Kind::kPurge);
  };
  // Not where the user has said how much.
  settings.mmap_threshold_adapts = false;
  for (int i = 0; i < 3; ++i) EXPECT_GT(purges_of_a_round(), 0u);
  EXPECT_LE(arena_.FreeDirtyBytes(), 8 * kMiB);
  EXPECT_GT(arena_.Purge(0), 0u);

  settings.mmap_threshold_adapts = true;
  EXPECT_GT(purges_of_a_round(), 0u) << "what was purged as the user said is no reason";
  EXPECT_LE(arena_.FreeDirtyBytes(), 8 * kMiB);
  EXPECT_EQ(purges_of_a_round(), 0u);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 40 * kMiB);
  EXPECT_EQ(purges_of_a_round(), 0u);

  // Not while memory is short, and what is purged then is no reason either.
  memory_limits.SetLimits(1, 0);
  ASSERT_TRUE(memory_limits.Charge(kMiB));
  ASSERT_TRUE(AboveSoftLimit());
  EXPECT_GT(arena_.PurgeOverCap(), 0u);
  EXPECT_LE(arena_.FreeDirtyBytes(), 8 * kMiB);
  for (int i = 0; i < 3; ++i) EXPECT_GT(purges_of_a_round(), 0u);
  memory_limits.Refund(kMiB);
  memory_limits.SetLimits(0, 0);
  EXPECT_EQ(purges_of_a_round(), 0u);

  // What then grows old was kept in vain.
  EXPECT_EQ(arena_.PurgeFreedBefore(NowMs() + 1), 40 * kMiB);
  EXPECT_GT(purges_of_a_round(), 0u);
  EXPECT_LE(arena_.FreeDirtyBytes(), 8 * kMiB);
}

TEST_F(ArenaTest, AFreePurgesNotMoreThanSomeSteps) {
  constexpr size_t kFreed = 2 * Arena::kMostCapPurgeBytes;
  PageRun* const run = Allocate(kFreed / PageBytes());
  PageRun* const other = Allocate(1);
  settings.trim_threshold_bytes = 2 * kFreed;
  arena_.Deallocate(run);
  settings.trim_threshold_bytes = PageBytes();
  arena_.Deallocate(other);
  EXPECT_EQ(arena_.FreeDirtyBytes(),
            kFreed + PageBytes() - Arena::kMostCapPurgeBytes);
}

// Where each run has a page, to purge them is many calls of the system.
TEST_F(ArenaTest, NorMoreThanSomeRuns) {
  std::vector<PageRun*> runs, guards;
  for (size_t i = 0; i < 3 * Arena::kMostCapPurgeSteps; ++i) {
    runs.push_back(Allocate(1));
    guards.push_back(Allocate(1));
  }
  PageRun* const last = runs.back();
  runs.pop_back();
  settings.trim_threshold_bytes = runs.size() * PageBytes();
  for (PageRun* run : runs) arena_.Deallocate(run);
  EXPECT_EQ(source_.CountOf(Kind::kPurge), 0u);
  settings.trim_threshold_bytes = PageBytes();
  arena_.Deallocate(last);
  EXPECT_EQ(source_.CountOf(Kind::kPurge), Arena::kMostCapPurgeSteps);
  // The next free goes on.
  arena_.Deallocate(guards.front());
  EXPECT_EQ(source_.CountOf(Kind::kPurge), 2 * Arena::kMostCapPurgeSteps);
  for (size_t i = 1; i < guards.size(); ++i) arena_.Deallocate(guards[i]);
}

TEST_F(ArenaTest, StaysDirtyWhenThePurgeIsRefused) {
  PageRun* const run = Allocate(10);
  PageRun* const guard = Allocate(1);
  Fill(run, 1);
  Deallocate({run});
  source_.RefuseKind(Kind::kPurge);
  EXPECT_EQ(arena_.PurgeFreedBefore(NowMs() + 1), 0u);
  EXPECT_EQ(source_.CountOf(Kind::kPurge), 1u);
  EXPECT_EQ(arena_.statistics().free_dirty_bytes, 10 * PageBytes());
  PageRun* const again = Allocate(10);
  EXPECT_FALSE(again->zeroed);
  arena_.Verify();
  Deallocate({again, guard});
}

TEST_F(ArenaTest, DoesNotAskForARefusedPurgeWithEveryFree) {
  settings.trim_threshold_bytes = 2 * kMiB;
  std::vector<PageRun*> runs, guards;
  for (int i = 0; i < 32; ++i) {
    runs.push_back(Allocate(kMiB / 4 / PageBytes()));
    guards.push_back(Allocate(1));
  }
  source_.RefuseKind(Kind::kPurge);
  // Asks at 2.25 and then at 4.75 MiB, each time for at most the 9 and 19 runs
  // that are free; never again up to 8 MiB.
  for (PageRun* run : runs) arena_.Deallocate(run);
  EXPECT_GT(source_.CountOf(Kind::kPurge), 9u);
  EXPECT_LE(source_.CountOf(Kind::kPurge), 9u + 19u);
  // Once the system agrees, the threshold holds again.
  source_.RefuseNothing();
  EXPECT_GT(arena_.Purge(0), 0u);
  source_.ForgetCalls();
  for (PageRun*& run : runs) run = Allocate(kMiB / 4 / PageBytes());
  for (PageRun* run : runs) arena_.Deallocate(run);
  for (PageRun* guard : guards) arena_.Deallocate(guard);
}

TEST_F(ArenaTest, FindsARunByAnyAddress) {
  PageRun* const run = Allocate(3);
  PageRun* const single = Allocate(1);
  int on_stack;
  EXPECT_EQ(Arena::RunOf(run->start + 1), nullptr);
  EXPECT_EQ(Arena::RunOf(run->start + PageBytes()), nullptr);
  EXPECT_EQ(Arena::RunOf(&on_stack), nullptr);
  EXPECT_EQ(Arena::RunOf(nullptr), nullptr);
  EXPECT_EQ(Arena::RunContaining(run->start), run);
  EXPECT_EQ(Arena::RunContaining(run->start + PageBytes()), run);
  EXPECT_EQ(Arena::RunContaining(run->end() - 1), run);
  EXPECT_EQ(Arena::RunContaining(run->end()), single);
  EXPECT_EQ(Arena::RunContaining(&on_stack), nullptr);
  char* const start = run->start;
  Deallocate({run});
  EXPECT_EQ(Arena::RunOf(start), nullptr);
  EXPECT_TRUE(Arena::RunContaining(start)->IsFree());
  Deallocate({single});
}

// An arena whose mappings lie where the test says.
class PlacedArenaTest : public testing::Test {
 protected:
  ~PlacedArenaTest() override {
    arena_.Verify();
    EXPECT_EQ(arena_.statistics().in_use_bytes, 0u);
    arena_.Purge(0);
    EXPECT_EQ(arena_.statistics(), Arena::Statistics());
    EXPECT_EQ(source_.statistics().mapped_bytes, 0u);
  }

  PageRun* Allocate(size_t pages, size_t alignment = 1) {
    PageRun* const run = arena_.Allocate(pages, alignment);
    EXPECT_EQ(Arena::RunOf(run->start), run);
    return run;
  }

  void Deallocate(std::initializer_list<PageRun*> runs) {
    for (PageRun* run : runs) arena_.Deallocate(run);
  }

  void Fill(PageRun* run, char c) { memset(run->start, c, run->bytes()); }

  SettingsSaver settings_saver_;
  PlacedPageSource source_;
  OsPageSource metadata_source_;
  MetadataPool metadata_{metadata_source_};
  Arena arena_{source_, metadata_, 7};
};

TEST_F(PlacedArenaTest, UnmapsSegmentsThatAreWhollyFree) {
  PageRun* const first = Allocate(4 * kMiB / PageBytes());
  PageRun* const second = Allocate(8 * kMiB / PageBytes());
  PageRun* const third = Allocate(1);
  EXPECT_EQ(arena_.statistics().segments, 3u);
  Fill(second, 1);
  char* const address = second->start;
  Deallocate({first, second});
  EXPECT_EQ(PageMap::TagOf(address), kRunTag);
  EXPECT_EQ(arena_.Purge(100 * kMiB), 0u);
  EXPECT_EQ(arena_.Purge(15 * kMiB), 12 * kMiB);
  EXPECT_EQ(arena_.statistics().segments, 1u);
  EXPECT_EQ(PageMap::TagOf(address), kNoTag);
  EXPECT_EQ(Arena::RunContaining(address), nullptr);
  arena_.Verify();
  Deallocate({third});
}

// Or a program's limit would be passed for a page.
TEST_F(PlacedArenaTest, WhatIsUnmappedMakesTheNextSegmentSmaller) {
  PageRun* const first = Allocate(4 * kMiB / PageBytes());
  PageRun* const second = Allocate(8 * kMiB / PageBytes());
  EXPECT_EQ(arena_.statistics().mapped_bytes, 12 * kMiB);
  Deallocate({first, second});
  arena_.Purge(0);
  ASSERT_EQ(arena_.statistics().mapped_bytes, 0u);
  PageRun* const third = Allocate(1);
  EXPECT_EQ(arena_.statistics().mapped_bytes, Arena::kFirstSegmentBytes);
  Deallocate({third});
}

// Of a segment's three parts the outer ones are free.
TEST_F(PlacedArenaTest, UnmapsTheFreeEndsOfASegment) {
  const size_t third = Arena::kFirstSegmentBytes / PageBytes() / 4;
  PageRun* const low = Allocate(third);
  PageRun* const middle = Allocate(third + 1);
  char* const start = low->start;
  char* const end = start + Arena::kFirstSegmentBytes;
  Fill(low, 1);
  Fill(middle, 2);
  Deallocate({low});
  // The end is free but for what it shares a granule with.
  char* const free_end = middle->end() + kGranuleBytes - PageBytes();
  const size_t mapped_bytes = arena_.statistics().mapped_bytes;
  EXPECT_EQ(arena_.Purge(0), kMiB) << "what lies behind the third was no memory yet";
  EXPECT_EQ(arena_.statistics().mapped_bytes,
            mapped_bytes - kMiB - static_cast<size_t>(end - free_end));
  arena_.Verify();
  EXPECT_EQ(PageMap::TagOf(start), kNoTag);
  EXPECT_EQ(PageMap::TagOf(end - 1), kNoTag);
  EXPECT_EQ(PageMap::TagOf(free_end - 1), kRunTag);
  EXPECT_EQ(Arena::RunOf(middle->start), middle);
  EXPECT_EQ(Arena::RunContaining(end - 1), nullptr);
  EXPECT_EQ(middle->end()[-1], 2);
  EXPECT_EQ(arena_.Purge(0), 0u);
  Deallocate({middle});
}

TEST_F(PlacedArenaTest, ARunMayLieAcrossTwoMappings) {
  source_.gap_bytes = 0;
  PageRun* const first = Allocate(4 * kMiB / PageBytes());
  PageRun* const second = Allocate(8 * kMiB / PageBytes());
  EXPECT_EQ(second->end(), first->start);
  EXPECT_EQ(arena_.statistics().segments, 1u);
  EXPECT_EQ(arena_.statistics().mapped_bytes, 12 * kMiB);
  Fill(first, 1);
  Deallocate({first, second});
  arena_.Verify();
  EXPECT_EQ(arena_.statistics().free_runs, 1u);
  PageRun* const both = Allocate(10 * kMiB / PageBytes());
  EXPECT_EQ(arena_.statistics().mapped_bytes, 12 * kMiB);
  EXPECT_EQ(Arena::RunOf(both->start), both);
  EXPECT_EQ(Arena::RunContaining(both->end() - 1), both);
  Fill(both, 2);
  Deallocate({both});
}

TEST_F(PlacedArenaTest, ANewMappingIsJoinedWithWhatIsFreeBesideIt) {
  source_.gap_bytes = 0;
  PageRun* const rest = Allocate(100);
  PageRun* const used = Allocate(kMiB / PageBytes());
  Deallocate({rest});
  const size_t mapped = arena_.statistics().mapped_bytes;
  // More than is mapped at once: the new mapping and the free pages above it.
  PageRun* const large = Allocate(8 * kMiB / PageBytes());
  EXPECT_EQ(arena_.statistics().mapped_bytes, mapped + 8 * kMiB);
  EXPECT_EQ(arena_.statistics().segments, 1u);
  arena_.Verify();
  EXPECT_EQ(large->end(), used->start);
  Deallocate({large, used});
}

TEST_F(PlacedArenaTest, AMappingApartOrOutOfReachIsAnotherSegment) {
  PageRun* const first = Allocate(4 * kMiB / PageBytes());
  PageRun* const apart = Allocate(8 * kMiB / PageBytes());
  EXPECT_EQ(arena_.statistics().segments, 2u);
  source_.gap_bytes = 0;
  PageRun* const also_apart = Allocate(16 * kMiB / PageBytes());
  PageRun* const beside = Allocate(32 * kMiB / PageBytes());
  EXPECT_EQ(beside->end(), also_apart->start);
  EXPECT_EQ(arena_.statistics().segments, 3u);
  PageRun* const out_of_reach = Allocate(64 * kMiB / PageBytes());
  EXPECT_EQ(out_of_reach->end(), beside->start);
  EXPECT_EQ(arena_.statistics().segments, 4u);
  arena_.Verify();
  Deallocate({first, apart, also_apart, beside, out_of_reach});
}

// Requests are cut from the end that is resident.
TEST_F(PlacedArenaTest, PrefersTheResidentEndOfARun) {
  source_.gap_bytes = 0;
  PageRun* const old = Allocate(4 * kMiB / PageBytes());
  PageRun* const fresh = Allocate(10);  // Its rest is top, below `old`.
  char* const end = old->end();
  Fill(old, 1);
  Deallocate({old});
  EXPECT_EQ(arena_.statistics().free_runs, 1u);
  PageRun* const slab = Allocate(16, kGranuleBytes);
  EXPECT_EQ(slab->end(), end);
  EXPECT_FALSE(slab->zeroed);
  arena_.Verify();
  Deallocate({fresh, slab});
}

TEST_F(PlacedArenaTest, WhatWasMovedOutIsCleanAndZero) {
  PageRun* const run = Allocate(100);
  PageRun* const beside = Allocate(1);
  Fill(run, 1);
  Deallocate({run});
  PageRun* const dirty = Allocate(100);
  EXPECT_FALSE(dirty->zeroed);
  ASSERT_EQ(madvise(dirty->start, dirty->bytes(), MADV_DONTNEED), 0);
  arena_.DeallocateMovedOut(dirty);
  EXPECT_EQ(arena_.statistics().free_dirty_bytes, 0u);
  arena_.Verify();
  PageRun* const again = Allocate(100);
  EXPECT_TRUE(again->zeroed);
  Deallocate({again, beside});
}

TEST_F(PlacedArenaTest, AMappingBeginsWhereAHugePageCan) {
  source_.gap_bytes = 5 * kGranuleBytes;
  std::vector<PageRun*> runs;
  // The second is more than a segment has by itself.
  for (const size_t bytes : {PageBytes(), 20 * kMiB + kGranuleBytes, 40 * kMiB}) {
    runs.push_back(Allocate(bytes / PageBytes()));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(runs.back()->segment->start()) %
                  kHugePageBytes,
              0u);
  }
  // Or else anywhere, and only as large as it must be.
  source_.most_alignment = kGranuleBytes;
  const size_t mapped_bytes = arena_.statistics().mapped_bytes;
  runs.push_back(Allocate(20 * kMiB / PageBytes()));
  EXPECT_EQ(arena_.statistics().mapped_bytes, mapped_bytes + 20 * kMiB);
  for (PageRun* run : runs) arena_.Deallocate(run);
}

TEST_F(PlacedArenaTest, KeepsSmallPagesUnlessAllIsAsTheSystemIsSet) {
  for (const HugePagePolicy policy : {HugePagePolicy::kNever,
                                      HugePagePolicy::kGrown}) {
    settings.huge_pages = policy;
    PageRun* const run = Allocate(1);
    EXPECT_EQ(source_.small_pages,
              (std::vector{std::pair(run->start,
                                     arena_.statistics().mapped_bytes)}));
    Deallocate({run});
    arena_.Purge(0);
    source_.small_pages.clear();
  }
  settings.huge_pages = HugePagePolicy::kSystem;
  PageRun* const run = Allocate(1);
  EXPECT_TRUE(source_.small_pages.empty());
  Deallocate({run});
}

// An arena that has grown, and is asked for slabs.
class GrownArenaTest : public PlacedArenaTest {
 protected:
  static constexpr size_t kHuge = kHugePageBytes;
  static constexpr uint32_t kMostFailures = Arena::kMostHugePageFailures;

  GrownArenaTest() {
    // All of the first mapping.
    static_assert(Arena::kFirstSegmentBytes >= Arena::kGrownBytes);
    runs_.push_back(Allocate(Arena::kFirstSegmentBytes / PageBytes()));
    source_.small_pages.clear();
  }
  ~GrownArenaTest() override {
    for (PageRun* run : runs_) arena_.Deallocate(run);
  }

  PageRun* AllocateSlab() {
    PageRun* const run =
        arena_.Allocate(kGranuleBytes / PageBytes(), kGranuleBytes,
                        Filling::kFromLowEnd);
    runs_.push_back(run);
    return run;
  }

  // The first that begins where a huge page can.
  PageRun* AllocateFirstSlab() {
    PageRun* run = AllocateSlab();
    while (!BeginsRange(run)) run = AllocateSlab();
    return run;
  }

  // Whether a huge page that begins with the run lies in what the arena has.
  static bool BeginsRange(const PageRun* run) {
    if (reinterpret_cast<uintptr_t>(run->start) % kHuge != 0) return false;
    const PageRun* const last = Arena::RunContaining(run->start + kHuge - 1);
    return last != nullptr && last->segment == run->segment;
  }

  void DeallocateAllFrom(const PageRun* run) {
    while (runs_.back() != run) DeallocateLast();
    DeallocateLast();
  }
  void DeallocateLast() {
    arena_.Deallocate(runs_.back());
    runs_.pop_back();
  }

  std::vector<PageRun*> runs_;
};

TEST_F(GrownArenaTest, SlabsLieOnHugePages) {
  std::vector<std::pair<char*, size_t>> expected;
  while (expected.size() < 5) {
    PageRun* const run = AllocateSlab();
    EXPECT_TRUE(run->zeroed);
    EXPECT_EQ(run->begins_huge_page, BeginsRange(run));
    if (BeginsRange(run)) expected.emplace_back(run->start, kHuge);
    // What was made resident too early can go back.
    const bool is_in_range = !expected.empty() &&
                             run->start >= expected.back().first &&
                             run->end() <= expected.back().first + kHuge;
    const size_t behind =
        is_in_range ? expected.back().first + kHuge - run->end() : 0;
    EXPECT_EQ(arena_.statistics().free_dirty_bytes, behind);
    arena_.Verify();
  }
  EXPECT_EQ(source_.huge_pages, expected);
  // No advice stays.
  std::erase_if(source_.small_pages,
                [](const auto& range) { return range.second != kHuge; });
  EXPECT_EQ(source_.small_pages, expected);
  EXPECT_EQ(arena_.PurgeFreedBefore(NowMs() + 1), kHuge - kGranuleBytes);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
  arena_.Verify();
}

TEST_F(GrownArenaTest, SoDoPageRunsWhereEarlierOnesWereFilled) {
  constexpr size_t kOfSample = GrowthHistory::kRangesOfSample;
  for (const bool are_filled : {false, true}) {
    source_.ranges_are_filled = are_filled;
    std::vector<bool> begin;
    while (begin.size() < 4 * kOfSample) {
      PageRun* const run = Allocate(kGranuleBytes / PageBytes());
      runs_.push_back(run);
      EXPECT_TRUE(run->zeroed);
      if (BeginsRange(run)) begin.push_back(run->begins_huge_page);
    }
    std::vector<bool> expected(4 * kOfSample, false);
    for (size_t i = 0; i < begin.size(); ++i) {
      expected[i] = are_filled && i % kOfSample != 0;
    }
    EXPECT_EQ(begin, expected);
    EXPECT_EQ(source_.huge_pages.size(), are_filled ? 4 * (kOfSample - 1) : 0);
    arena_.Verify();
  }
}

TEST_F(GrownArenaTest, ARunIsFreshIfNothingOfItMayBeResident) {
  PageRun* const first = AllocateFirstSlab();
  EXPECT_TRUE(first->begins_huge_page);
  EXPECT_FALSE(first->is_fresh);
  PageRun* const second = AllocateSlab();
  EXPECT_TRUE(second->zeroed);
  EXPECT_FALSE(second->is_fresh) << "it is on the same huge page";

  source_.has_huge_pages = false;
  settings.huge_pages = HugePagePolicy::kNever;
  PageRun* const fresh = AllocateFirstSlab();
  EXPECT_TRUE(fresh->is_fresh);
  runs_.pop_back();
  arena_.Deallocate(fresh);
  EXPECT_FALSE(AllocateSlab()->is_fresh) << "it was in use";
}

TEST_F(GrownArenaTest, WhatIsFreedUntouchedIsStillResidentAndZero) {
  PageRun* const run = AllocateFirstSlab();
  char* const start = run->start;
  runs_.pop_back();
  run->start[0] = 1;
  arena_.Deallocate(run, 1);
  EXPECT_EQ(arena_.FreeDirtyBytes(), kHuge);
  PageRun* const again = AllocateSlab();
  EXPECT_EQ(again->start, start);
  EXPECT_FALSE(again->zeroed);
  EXPECT_TRUE(AllocateSlab()->zeroed);
  EXPECT_EQ(source_.huge_pages.size(), 1u) << "it is there";
}

TEST_F(GrownArenaTest, ARangeThatIsResidentIsNotAskedForAgain) {
  PageRun* const run = AllocateFirstSlab();
  char* const start = run->start;
  runs_.pop_back();
  arena_.Deallocate(run, 0);
  EXPECT_EQ(arena_.FreeDirtyBytes(), kHuge);
  PageRun* const again = AllocateSlab();
  EXPECT_EQ(again->start, start);
  EXPECT_TRUE(again->zeroed);
  EXPECT_EQ(source_.huge_pages.size(), 1u);
}

TEST_F(GrownArenaTest, NorIsOneThatTheSystemMayStillHaveToTake) {
  PageRun* const run = AllocateFirstSlab();
  Segment* const segment = run->segment;
  const uint32_t last_page = segment->PageOf(run->start + kHuge - 1);
  DeallocateAllFrom(run);
  arena_.PurgeFreedBefore(NowMs() + 1);
  segment->SetDirty(last_page, 1);
  segment->SetPurged(last_page, 1, /*zero=*/false);
  EXPECT_FALSE(AllocateSlab()->begins_huge_page);
  segment->SetPurged(last_page, 1, /*zero=*/true);
}

TEST_F(GrownArenaTest, ARunThatIsLargerThanAHugePageGetsNone) {
  for (const size_t bytes : {kHuge, kHuge + kGranuleBytes}) {
    runs_.push_back(arena_.Allocate(bytes / PageBytes(), kHuge,
                                    Filling::kFromLowEnd));
    EXPECT_FALSE(runs_.back()->begins_huge_page);
  }
  EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
}

TEST_F(GrownArenaTest, ARunThatReachesIntoARangeBeginsAHugePageThere) {
  PageRun* first = AllocateFirstSlab();
  const auto has_another_range = [](const PageRun* run) {
    const PageRun* const last = Arena::RunContaining(run->start + 2 * kHuge - 1);
    return last != nullptr && last->segment == run->segment;
  };
  while (!has_another_range(first)) first = AllocateFirstSlab();
  char* const next = first->start + kHuge;
  runs_.push_back(Allocate((kHuge - 2 * kGranuleBytes) / PageBytes()));
  ASSERT_EQ(runs_.back()->end(), next - kGranuleBytes);
  ASSERT_EQ(arena_.FreeDirtyBytes(), kGranuleBytes);
  const size_t asked_before = source_.huge_pages.size();

  PageRun* const run =
      arena_.Allocate(4 * kGranuleBytes / PageBytes(), kGranuleBytes,
                      Filling::kFromLowEnd);
  ASSERT_EQ(run->start, next - kGranuleBytes);
  EXPECT_TRUE(run->begins_huge_page);
  EXPECT_TRUE(run->zeroed);
  ASSERT_EQ(source_.huge_pages.size(), asked_before + 1);
  EXPECT_EQ(source_.huge_pages.back(), std::pair(next, kHuge));
  EXPECT_EQ(arena_.FreeDirtyBytes(), kHuge - 3 * kGranuleBytes);
  arena_.Verify();
  // All of it is resident, the part of the run as well.
  arena_.Deallocate(run, 0);
  EXPECT_EQ(arena_.FreeDirtyBytes(), kHuge + kGranuleBytes);
  arena_.Verify();
}

// The advice for a whole run ends with it, or with a part of it.
TEST_F(GrownArenaTest, WhatIsGivenBackOfARunOnHugePagesIsToBeSmallPages) {
  const size_t pages = 2 * kHuge / PageBytes();
  for (const size_t left_pages : {size_t{0}, pages, pages - 1}) {
    PageRun* const run = arena_.Allocate(pages, kHuge);
    ASSERT_TRUE(run->zeroed);
    const std::pair<char*, size_t> all(run->start, run->bytes());
    source_.huge_pages.clear();
    source_.small_pages.clear();
    arena_.PreferHugePages(run);
    EXPECT_TRUE(run->has_huge_pages);
    ASSERT_EQ(source_.huge_pages.size(), 1u);
    EXPECT_EQ(source_.huge_pages[0], all);
    if (left_pages > 0) {
      arena_.Shrink(run, left_pages);
      EXPECT_EQ(run->has_huge_pages, left_pages == pages);
      EXPECT_EQ(source_.small_pages.size(), left_pages == pages ? 0u : 1u);
    }
    arena_.Deallocate(run);
    ASSERT_EQ(source_.small_pages.size(), 1u);
    EXPECT_EQ(source_.small_pages[0], all);
    arena_.Verify();
    // The next that is cut from it has none.
    arena_.PurgeFreedBefore(NowMs() + 1);
    PageRun* const next = arena_.Allocate(pages, kHuge);
    EXPECT_FALSE(next->has_huge_pages);
    arena_.DeallocateMovedOut(next);
    EXPECT_EQ(source_.small_pages.size(), 1u);
  }
}

// A free run that is dirty behind the range already.
TEST_F(GrownArenaTest, TheRestMayHaveDirtyPages) {
  const size_t few = kGranuleBytes / PageBytes();
  PageRun* const whole = Allocate(kHuge / PageBytes() + 3 * few, kHuge);
  runs_.push_back(Allocate(kHuge / PageBytes()));
  ASSERT_EQ(whole->end(), runs_.back()->start);
  PageRun* const gap = whole->segment->Before(whole);
  if (gap != nullptr && gap->IsFree()) runs_.push_back(Allocate(gap->pages));
  arena_.Deallocate(whole, 0);
  PageRun* const range = Allocate(kHuge / PageBytes(), kHuge);
  PageRun* const clean = Allocate(few);
  PageRun* const dirty = Allocate(few);
  ASSERT_EQ(range->end(), clean->start);
  ASSERT_EQ(clean->end(), dirty->start);
  arena_.Deallocate(dirty, few);
  arena_.Deallocate(range, 0);
  arena_.Deallocate(clean, 0);
  // At a multiple of so much, or it would be where what is dirty is.
  runs_.push_back(arena_.Allocate(few, kHuge, Filling::kFromLowEnd));
  EXPECT_TRUE(runs_.back()->begins_huge_page);
  EXPECT_EQ(arena_.FreeDirtyBytes(), kHuge);
  arena_.Verify();
}

// Something happens before the first page of the range is touched: in the handler
// of a fault, since a test cannot stop a thread there.
class InterruptedArenaTest : public GrownArenaTest {
 protected:
  PageRun* AllocateFirstSlabAnd(void (*call)(Arena& arena)) {
    // One more would be once too often.
    source_.has_huge_pages = false;
    for (uint32_t i = 2; i < kMostFailures; ++i) AllocateFirstSlab();
    DeallocateAllFrom(AllocateFirstSlab());
    arena_.PurgeFreedBefore(NowMs() + 1);
    source_.small_pages.clear();
    interrupted_ = &arena_;
    interrupt_ = call;
    source_.during_advice = [&] {
      page_ = source_.huge_pages.back().first;
      ASSERT_EQ(mprotect(page_, PageBytes(), PROT_NONE), 0);
    };
    struct sigaction action = {}, before;
    action.sa_handler = [](int) {
      if (mprotect(page_, PageBytes(), PROT_READ | PROT_WRITE) != 0) abort();
      interrupt_(*interrupted_);
    };
    EXPECT_EQ(sigaction(SIGSEGV, &action, &before), 0);
    PageRun* const run = AllocateSlab();
    EXPECT_EQ(sigaction(SIGSEGV, &before, nullptr), 0);
    EXPECT_TRUE(run->begins_huge_page);
    return run;
  }

 private:
  static inline Arena* interrupted_;
  static inline void (*interrupt_)(Arena& arena);
  static inline char* page_;
};

TEST_F(InterruptedArenaTest, APurgedRangeTellsNothingOfTheSystem) {
  AllocateFirstSlabAnd([](Arena& arena) {
    if (arena.PurgeFreedBefore(NowMs() + 1) == 0) abort();
  });
  source_.has_huge_pages = true;
  source_.huge_pages.clear();
  AllocateFirstSlab();
  EXPECT_EQ(source_.huge_pages.size(), 1u);
}

// What another thread had of the range is not taken for clean.
TEST_F(InterruptedArenaTest, WhatWasWrittenToMeanwhileStaysDirty) {
  const PageRun* const run = AllocateFirstSlabAnd([](Arena& arena) {
    PageRun* const other =
        arena.Allocate(kGranuleBytes / PageBytes(), kGranuleBytes);
    memset(other->start, 1, kGranuleBytes);
    arena.Deallocate(other);
  });
  EXPECT_GE(arena_.FreeDirtyBytes(), kGranuleBytes);
  PageRun* const again = AllocateSlab();
  EXPECT_EQ(again->start, run->end());
  EXPECT_FALSE(again->zeroed);
  arena_.Verify();
}

TEST_F(InterruptedArenaTest, NoAdviceIsGivenForWhatIsNoLongerMapped) {
  PageRun* const run =
      AllocateFirstSlabAnd([](Arena& arena) { arena.Purge(0); });
  ASSERT_EQ(source_.small_pages.size(), 1u);
  EXPECT_EQ(source_.small_pages[0].first, run->start);
  const char* const end = run->segment->start() + run->segment->bytes();
  EXPECT_LT(end, run->start + kHuge) << "nothing was unmapped";
  EXPECT_EQ(source_.small_pages[0].first + source_.small_pages[0].second, end);
  // The system may well have another.
  source_.has_huge_pages = true;
  source_.huge_pages.clear();
  AllocateFirstSlab();
  EXPECT_EQ(source_.huge_pages.size(), 1u);
}

TEST_F(GrownArenaTest, APurgedRangeMayBecomeAHugePageAgain) {
  PageRun* const run = AllocateFirstSlab();
  char* const start = run->start;
  DeallocateAllFrom(run);
  EXPECT_EQ(arena_.PurgeFreedBefore(NowMs() + 1), kHuge);
  EXPECT_EQ(AllocateSlab()->start, start);
  EXPECT_EQ(source_.huge_pages.size(), 2u);
}

TEST_F(GrownArenaTest, ARangeOfWhichAPageWasTouchedStaysSmall) {
  PageRun* const run = AllocateFirstSlab();
  char* const start = run->start;
  AllocateSlab();
  PageRun* const touched = AllocateSlab();
  AllocateSlab();
  std::erase(runs_, touched);
  arena_.Deallocate(touched);
  // All that is free goes back, but a page amid the range is in use.
  while (runs_.back() != run) {
    PageRun* const last = runs_.back();
    if (last->start == start + kGranuleBytes) break;
    DeallocateLast();
  }
  std::erase(runs_, run);
  arena_.Deallocate(run);
  arena_.PurgeFreedBefore(NowMs() + 1);
  EXPECT_EQ(AllocateSlab()->start, start);
  EXPECT_EQ(source_.huge_pages.size(), 1u);
}

TEST_F(GrownArenaTest, ARunThatMayStaySparseGetsNone) {
  const PageRun* run;
  do {
    run = Allocate(kGranuleBytes / PageBytes(), kGranuleBytes);
    runs_.push_back(const_cast<PageRun*>(run));
  } while (!BeginsRange(run));
  // Nor does a slab in a range that such a run has a part of.
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(BeginsRange(AllocateSlab()));
  EXPECT_TRUE(source_.huge_pages.empty());
  EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
}

TEST_F(GrownArenaTest, AHugePageNeedsRoom) {
  // The rest of the mapping is shorter than one.
  AllocateFirstSlab();
  source_.huge_pages.clear();
  const Arena::Statistics statistics = arena_.statistics();
  PageRun* last = Arena::RunContaining(runs_.back()->end());
  ASSERT_TRUE(last->IsFree());
  const size_t keep_pages = (kHuge - kGranuleBytes) / PageBytes();
  runs_.push_back(Allocate(last->pages - keep_pages));
  EXPECT_EQ(arena_.statistics().free_bytes,
            statistics.free_bytes - runs_.back()->bytes());
  for (size_t i = 0; i < kHuge / kGranuleBytes - 1; ++i) AllocateSlab();
  EXPECT_TRUE(source_.huge_pages.empty());
}

TEST_F(GrownArenaTest, NoneIsAskedForWhereFreeMemoryIsNotKept) {
  settings.decay_ms = 0;
  AllocateFirstSlab();
  EXPECT_TRUE(source_.huge_pages.empty());
  EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
}

TEST_F(GrownArenaTest, NoneIsAskedForWhereNoMoreMayBeDirty) {
  settings.mmap_threshold_adapts = false;
  for (const size_t bytes : {kHuge - 1, kHuge}) {
    settings.trim_threshold_bytes = bytes;
    EXPECT_EQ(AllocateFirstSlab()->begins_huge_page, bytes == kHuge);
  }
}

TEST_F(GrownArenaTest, NoneIsAskedForAboveTheSoftLimit) {
  memory_limits.SetLimits(1, 0);
  ASSERT_TRUE(memory_limits.Charge(1 << 20));
  ASSERT_TRUE(AboveSoftLimit());
  AllocateFirstSlab();
  EXPECT_TRUE(source_.huge_pages.empty());
  memory_limits.Refund(1 << 20);
  memory_limits.SetLimits(0, 0);
  EXPECT_TRUE(AllocateFirstSlab()->begins_huge_page);
}

TEST_F(GrownArenaTest, NoneIsAskedForByOtherPolicies) {
  for (const HugePagePolicy policy : {HugePagePolicy::kNever,
                                      HugePagePolicy::kSystem}) {
    settings.huge_pages = policy;
    AllocateFirstSlab();
    EXPECT_TRUE(source_.huge_pages.empty());
  }
}

TEST_F(GrownArenaTest, NoneIsAskedForWhileLittleIsInUse) {
  DeallocateLast();
  arena_.Purge(0);
  while (arena_.statistics().in_use_bytes < Arena::kGrownBytes) {
    EXPECT_FALSE(AllocateSlab()->begins_huge_page);
  }
  EXPECT_TRUE(source_.huge_pages.empty());
  EXPECT_TRUE(AllocateFirstSlab()->begins_huge_page);
}

TEST_F(GrownArenaTest, WhereTheSystemHadNoneTwiceAsMuchMustBeInUse) {
  source_.has_huge_pages = false;
  for (uint32_t i = 0; i < kMostFailures; ++i) AllocateFirstSlab();
  EXPECT_EQ(source_.huge_pages.size(), kMostFailures);
  size_t in_use_bytes = arena_.statistics().in_use_bytes;
  const auto allocate_up_to_twice = [&] {
    while (arena_.statistics().in_use_bytes + kGranuleBytes < 2 * in_use_bytes) {
      AllocateSlab();
    }
  };
  allocate_up_to_twice();
  EXPECT_EQ(source_.huge_pages.size(), kMostFailures);
  // Asked again, it has none again.
  AllocateFirstSlab();
  EXPECT_EQ(source_.huge_pages.size(), kMostFailures + 1);
  in_use_bytes = arena_.statistics().in_use_bytes;
  source_.has_huge_pages = true;
  allocate_up_to_twice();
  EXPECT_EQ(source_.huge_pages.size(), kMostFailures + 1);
  AllocateFirstSlab();
  AllocateFirstSlab();
  EXPECT_EQ(source_.huge_pages.size(), kMostFailures + 3);
}

// Nor are the pages behind the run resident.
TEST_F(GrownArenaTest, WhereTheSystemHadNoneNothingIsDirty) {
  source_.has_huge_pages = false;
  AllocateFirstSlab();
  EXPECT_EQ(source_.huge_pages.size(), 1u);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
  arena_.Verify();
  EXPECT_TRUE(AllocateSlab()->zeroed);
  arena_.Verify();
}

// A range may be the reason, where it had small pages before.
TEST_F(GrownArenaTest, AFewThatDoNotComeAreNoReasonToAskForFewer) {
  for (int i = 0; i < 5; ++i) {
    source_.has_huge_pages = false;
    for (uint32_t j = 1; j < kMostFailures; ++j) {
      EXPECT_TRUE(AllocateFirstSlab()->begins_huge_page);
    }
    source_.has_huge_pages = true;
    EXPECT_TRUE(AllocateFirstSlab()->begins_huge_page);
  }
}

// Runs freed at 10, 20, ... ms. The clock is the real one, so their times are
// set behind the arena's back.
TEST_F(PlacedArenaTest, PurgesWhatWasFreedBefore) {
  std::vector<PageRun*> runs, guards;
  for (int i = 0; i < 5; ++i) {
    runs.push_back(Allocate(10));
    guards.push_back(Allocate(1));
    Fill(runs[i], 1);
  }
  for (uint32_t i = 0; i < 5; ++i) {
    arena_.Deallocate(runs[i]);
    runs[i]->freed_ms = 10 + 10 * i - 25;  // Around the clock's end.
  }
  EXPECT_EQ(arena_.PurgeFreedBefore(10u - 25), 0u);
  EXPECT_EQ(arena_.PurgeFreedBefore(31u - 25), 30 * PageBytes());
  arena_.Verify();
  EXPECT_EQ(arena_.FreeDirtyBytes(), 20 * PageBytes());
  EXPECT_EQ(arena_.statistics().free_dirty_bytes, 20 * PageBytes());
  for (uint32_t i = 0; i < 5; ++i) {
    PageRun* const run = Arena::RunContaining(guards[i]->start - 1);
    EXPECT_EQ(run->dirty_pages, i < 3 ? 0u : 10u);
  }
  EXPECT_EQ(arena_.PurgeFreedBefore(31u - 25), 0u);
  EXPECT_EQ(source_.statistics().purge_calls, 3u);
  EXPECT_EQ(arena_.PurgeFreedBefore(NowMs() + 1), 20 * PageBytes());
  for (PageRun* guard : guards) arena_.Deallocate(guard);
}

TEST_F(PlacedArenaTest, ALargeIdleRegionStaysOldWhilePiecesAtItsEdgeComeAndGo) {
  PageRun* const large = Allocate(100);
  PageRun* const guard = Allocate(1);
  Deallocate({large});
  large->freed_ms -= 1000;
  const uint32_t old = large->freed_ms;
  PageRun* const piece = Allocate(16);
  EXPECT_EQ(piece->start, guard->start - 100 * PageBytes());
  Deallocate({piece});
  EXPECT_EQ(Arena::RunContaining(guard->start - 1)->freed_ms, old);
  EXPECT_EQ(arena_.PurgeFreedBefore(old + 1), 100 * PageBytes());
  Deallocate({guard});
}

TEST_F(PlacedArenaTest, PurgesNoMoreOfWhatIsOldThanItIsTold) {
  PageRun* const run = Allocate(3 * kMiB / PageBytes());
  PageRun* const guard = Allocate(1);
  Fill(run, 1);
  Deallocate({run});
  const uint32_t now_ms = NowMs() + 1;
  EXPECT_EQ(arena_.PurgeFreedBefore(now_ms, kMiB), kMiB);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 2 * kMiB);
  arena_.Verify();
  EXPECT_EQ(arena_.PurgeFreedBefore(now_ms), 2 * kMiB);
  Deallocate({guard});
}

TEST_F(PlacedArenaTest, PurgesALargeRunInSteps) {
  PageRun* const run = Allocate(30 * kMiB / PageBytes());
  PageRun* const guard = Allocate(1);
  Fill(run, 1);
  Deallocate({run});
  EXPECT_EQ(arena_.PurgeFreedBefore(NowMs() + 1), 30 * kMiB);
  EXPECT_EQ(source_.statistics().purge_calls, 4u);
  EXPECT_EQ(arena_.Purge(~size_t{0}), 0u);
  PageRun* const again = Allocate(30 * kMiB / PageBytes());
  EXPECT_TRUE(again->zeroed);
  EXPECT_EQ(again->start[0], 0);
  EXPECT_EQ(again->end()[-1], 0);
  Deallocate({again, guard});
}

// The part that requests are cut from next stays resident.
TEST_F(PlacedArenaTest, PurgesTheHighEndOfARunFirst) {
  PageRun* const run = Allocate(100);
  PageRun* const guard =
      Allocate(Arena::kFirstSegmentBytes / PageBytes() - 100);
  Fill(run, 1);
  Deallocate({run});
  EXPECT_EQ(arena_.Purge(60 * PageBytes()), 40 * PageBytes());
  arena_.Verify();
  PageRun* const dirty = Allocate(60);
  PageRun* const clean = Allocate(40);
  EXPECT_FALSE(dirty->zeroed);
  EXPECT_TRUE(clean->zeroed);
  Deallocate({dirty, clean, guard});
}

TEST_F(PlacedArenaTest, WorksWhileARunIsBeingPurged) {
  PageRun* const before = Allocate(10);
  PageRun* const run = Allocate(100);
  PageRun* const after = Allocate(10);
  PageRun* const guard = Allocate(1);
  Fill(run, 1);
  char* const start = run->start;
  char* const after_start = after->start;
  Deallocate({run});
  PageRun* taken = nullptr;
  source_.during_purge = [&] {
    const Arena::Statistics during = arena_.statistics();
    EXPECT_EQ(during.free_bytes, during.mapped_bytes - during.in_use_bytes);
    EXPECT_EQ(during.free_dirty_bytes, 0u);
    EXPECT_EQ(Arena::RunOf(start), nullptr);
    EXPECT_EQ(Arena::RunContaining(start)->state, PageRun::kPurging);
    arena_.Verify();
    // Neither is joined with it now.
    Deallocate({before, after});
    arena_.Verify();
    taken = Allocate(3);
    EXPECT_TRUE(taken->end() <= start || taken->start >= after_start);
    arena_.Verify();
  };
  EXPECT_EQ(arena_.PurgeFreedBefore(NowMs() + 1), 100 * PageBytes());
  ASSERT_NE(taken, nullptr);
  arena_.Verify();
  Deallocate({taken});
  // All three are one now.
  PageRun* const all = Allocate(120);
  EXPECT_EQ(all->end(), guard->start);
  Deallocate({all, guard});
}

TEST_F(PlacedArenaTest, ARequestWaitsForThePurgeOfTheOnlyRunThatFits) {
  const size_t all = Arena::kFirstSegmentBytes / PageBytes();
  PageRun* const run = Allocate(all);
  Fill(run, 1);
  Deallocate({run});
  std::thread requester;
  std::atomic<bool> asks{false};
  source_.during_purge = [&] {
    requester = std::thread([&] {
      asks = true;
      PageRun* const waited_for = Allocate(all);
      EXPECT_TRUE(waited_for->zeroed);
      Deallocate({waited_for});
    });
    while (!asks) std::this_thread::yield();
    // Long enough for it to wait, which nothing tells for sure.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  arena_.PurgeFreedBefore(NowMs() + 1);
  requester.join();
  EXPECT_EQ(arena_.statistics().mapped_bytes, Arena::kFirstSegmentBytes);
}

TEST_F(PlacedArenaTest, OnlyTouchedPagesBecomeDirty) {
  PageRun* const slab = Allocate(16);
  ASSERT_TRUE(slab->zeroed);
  memset(slab->start, 1, 5 * PageBytes());
  arena_.Deallocate(slab, 5);
  arena_.Verify();
  EXPECT_EQ(arena_.FreeDirtyBytes(), 5 * PageBytes());
  PageRun* const dirty = Allocate(5);
  PageRun* const clean = Allocate(11);
  EXPECT_FALSE(dirty->zeroed);
  EXPECT_TRUE(clean->zeroed);
  arena_.Deallocate(dirty, 0);  // As it was: dirty.
  arena_.Deallocate(clean, 0);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 5 * PageBytes());
}

TEST_F(PlacedArenaTest, WithoutDecayNothingStaysDirty) {
  settings.decay_ms = 0;
  PageRun* const run = Allocate(10);
  PageRun* const guard = Allocate(1);
  Fill(run, 1);
  Deallocate({run});
  EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
  EXPECT_EQ(source_.statistics().purge_calls, 1u);
  arena_.Shrink(guard, 1);
  Deallocate({guard});
  EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
}

TEST_F(PlacedArenaTest, LeavesWhatItMayToTheThreadThatIsAwake) {
  settings.trim_threshold_bytes = 4 * kMiB;
  std::vector<PageRun*> runs;
  for (int i = 0; i < 10; ++i) {
    runs.push_back(Allocate(kMiB / PageBytes()));
    runs.push_back(Allocate(1));
  }
  maintenance_signal.FallAsleep();
  maintenance_signal.StayAwake();
  for (int i = 0; i < 7; ++i) arena_.Deallocate(runs[2 * i]);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 7 * kMiB);
  EXPECT_EQ(arena_.PurgeOverCap(), 5 * kMiB);
  EXPECT_EQ(arena_.PurgeOverCap(), 0u);
  // Too much even so.
  settings.trim_threshold_bytes = 2 * kMiB;
  arena_.Deallocate(runs[14]);
  EXPECT_EQ(arena_.FreeDirtyBytes(), 3 * kMiB);
  arena_.Deallocate(runs[16]);
  EXPECT_EQ(arena_.FreeDirtyBytes(), kMiB);
  arena_.Deallocate(runs[18]);
  for (int i = 0; i < 10; ++i) arena_.Deallocate(runs[2 * i + 1]);
}

TEST_F(PlacedArenaTest, TellsTheThreadOnceMuchIsDirty) {
  PageRun* const half = Allocate(kMiB / 2 / PageBytes());
  PageRun* const other_half = Allocate(kMiB / 2 / PageBytes());
  PageRun* const page = Allocate(1);
  Deallocate({half});
  Deallocate({other_half});
  EXPECT_EQ(maintenance_signal.state(), MaintenanceSignal::kNoThread);
  Deallocate({page});
  EXPECT_EQ(maintenance_signal.state(), MaintenanceSignal::kWanted);
}

// From the n-th call on everything is refused, for every n until there are no
// so many calls. Nothing is lost and nothing else changes.
void RunOutOfMemoryAtEveryCall(bool of_metadata) {
  for (size_t n = 1;; ++n) {
    ScriptedPageSource source;
    ScriptedPageSource metadata_source;
    MetadataPool metadata(metadata_source);
    Arena arena(source, metadata);
    ScriptedPageSource& scripted = of_metadata ? metadata_source : source;
    scripted.RefuseFrom(n);
    std::vector<PageRun*> runs;
    size_t refused = 0;
    for (int i = 0; i < 6000; ++i) {
      const Arena::Statistics before = arena.statistics();
      PageRun* const run = arena.Allocate(1 + i % 5, i % 3 == 0 ? 65536 : 1);
      if (run == nullptr) {
        ASSERT_EQ(arena.statistics(), before);
        if (++refused % 500 == 1) arena.Verify();
        continue;
      }
      runs.push_back(run);
      if (i % 3 == 1) arena.Shrink(run, 1);
    }
    arena.Verify();
    // Not every refusal shows: where there is no room for the records of a large
    // mapping, a smaller one does.
    ASSERT_TRUE(refused == 0 || scripted.RefusedAny());
    scripted.RefuseNothing();
    for (PageRun* run : runs) arena.Deallocate(run);
    arena.Verify();
    EXPECT_EQ(arena.statistics().mapped_bytes, source.statistics().mapped_bytes);
    const size_t dirty_bytes = arena.statistics().free_dirty_bytes;
    EXPECT_EQ(arena.Purge(0), dirty_bytes);
    EXPECT_EQ(source.statistics().mapped_bytes, 0u);
    if (refused == 0) {
      EXPECT_GT(n, 3u);
      return;
    }
  }
}

TEST(ArenaWithoutMemory, WhatIsMappedCanBeUsedForSlabsOfAnyClass) {
  ScriptedPageSource source, metadata_source;
  MetadataPool metadata(metadata_source);
  Arena arena(source, metadata);
  PageRun* const run =
      arena.Allocate(Arena::kLargestSegmentBytes / PageBytes(), PageBytes());
  ASSERT_NE(run, nullptr);
  metadata_source.RefuseFrom(1);
  for (size_t i = 0; i < Arena::kLargestSegmentBytes / kGranuleBytes; ++i) {
    ASSERT_NE(metadata.Allocate(Arena::kMostSlabRecordBytes), nullptr) << i;
  }
  arena.Deallocate(run);
}

TEST(ArenaWithoutMemory, ARefusedSegmentLeavesTheHeapIntact) {
  RunOutOfMemoryAtEveryCall(/*of_metadata=*/false);
}

TEST(ArenaWithoutMemory, ARefusedRecordLeavesTheHeapIntact) {
  RunOutOfMemoryAtEveryCall(/*of_metadata=*/true);
}

TEST(ArenaWithoutMemory, WhatIsFreeGoesBackWithoutMemoryForARecord) {
  ScriptedPageSource source;
  ScriptedPageSource metadata_source;
  MetadataPool metadata(metadata_source);
  Arena arena(source, metadata);
  constexpr size_t kFreed = 2 * kMiB;
  PageRun* const first = arena.Allocate(kFreed / PageBytes() + 1, 1);
  // It stays at an end of its segment, wherever the kernel places the next mapping:
  // what lies below that is taken, if it was not before.
  void* const below = first->start - PageBytes();
  const bool took_page =
      mmap(below, PageBytes(), PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == below;
  std::vector<PageRun*> runs;
  metadata_source.RefuseFrom(1);
  while (PageRun* const run = arena.Allocate(1, 1)) runs.push_back(run);
  ASSERT_TRUE(metadata_source.RefusedAny());
  arena.Deallocate(first);
  const size_t mapped_bytes = arena.statistics().mapped_bytes;
  EXPECT_GE(arena.Purge(0), kFreed);
  EXPECT_LE(arena.statistics().mapped_bytes, mapped_bytes - kFreed);
  arena.Verify();
  metadata_source.RefuseNothing();
  for (PageRun* run : runs) arena.Deallocate(run);
  arena.Purge(0);
  EXPECT_EQ(source.statistics().mapped_bytes, 0u);
  if (took_page) munmap(below, PageBytes());
}

// Random operations against a model of live intervals: no overlap, alignment,
// contents, zero where zero is promised, and Verify() again and again.
void AgreeWithAModelOfLiveIntervals(size_t gap_bytes) {
  SettingsSaver settings_saver;
  PlacedPageSource source;
  source.gap_bytes = gap_bytes;
  OsPageSource metadata_source;
  MetadataPool metadata(metadata_source);
  Arena arena(source, metadata);
  std::mt19937_64 random(TestSeed());
  settings.trim_threshold_bytes = 16 * kMiB;
  struct Live {
    PageRun* run;
    uint64_t stamp;
    // Whether all pages hold the stamp, or the first one alone is touched.
    bool stamped;
  };
  std::map<char*, Live> live;
  size_t live_pages = 0;

  // A stamp in the first and last word of each page.
  const auto stamp_pages = [](const Live& one, size_t from, size_t to) {
    for (size_t page = from; page < to; ++page) {
      char* const start = one.run->start + page * PageBytes();
      memcpy(start, &one.stamp, 8);
      memcpy(start + PageBytes() - 8, &one.stamp, 8);
    }
  };
  const auto stamps_hold = [](const Live& one, size_t pages, uint64_t stamp) {
    if (!one.stamped) pages = 1;
    for (size_t page = 0; page < pages; ++page) {
      const char* const start = one.run->start + page * PageBytes();
      if (memcmp(start, &stamp, 8) != 0 ||
          memcmp(start + PageBytes() - 8, &stamp, 8) != 0) {
        return false;
      }
    }
    return true;
  };
  const auto pick = [&] {
    auto one = live.lower_bound(
        live.begin()->first +
        random() % (live.rbegin()->first - live.begin()->first + 1));
    return one;
  };

  for (int step = 0; step < 40000; ++step) {
    const bool filling = (step / 3000) % 2 == 0;
    const unsigned dice = random() % 100;
    if (live.empty() || dice < (filling ? 55u : 35u)) {
      size_t pages, alignment = 1;
      switch (random() % 8) {
        case 0:
          pages = 1 + random() % 32;
          break;
        case 1:
          pages = 33 + random() % 200;
          break;
        case 2:
          pages = 1 + random() % 40;
          alignment = size_t{1} << (random() % 23);
          break;
        case 3:
          pages = random() % 40 == 0 ? 1 + random() % 3000 : 2;
          break;
        default:
          pages = 16;
          alignment = kGranuleBytes;
      }
      PageRun* const run = arena.Allocate(pages, alignment);
      ASSERT_NE(run, nullptr);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(run->start) % alignment, 0u);
      const auto after = live.lower_bound(run->start);
      ASSERT_TRUE(after == live.end() || run->end() <= after->first);
      if (after != live.begin()) {
        ASSERT_LE(std::prev(after)->second.run->end(), run->start);
      }
      Live one = {run, random() | 1, true};
      if (run->zeroed) {
        ASSERT_TRUE(stamps_hold(one, pages, 0));
      }
      one.stamped = random() % 4 != 0;
      stamp_pages(one, 0, one.stamped ? pages : 1);
      live[run->start] = one;
      live_pages += pages;
    } else if (dice < 75) {
      const auto one = pick();
      PageRun* const run = one->second.run;
      ASSERT_TRUE(stamps_hold(one->second, run->pages, one->second.stamp));
      live_pages -= run->pages;
      const size_t touched_pages = one->second.stamped ? run->pages : 1;
      live.erase(one);
      arena.Deallocate(run, touched_pages);
    } else if (dice < 87) {
      const Live one = pick()->second;
      const size_t old_pages = one.run->pages;
      const size_t least = old_pages + random() % 10;
      const size_t most = least + random() % 10;
      const auto next = live.upper_bound(one.run->start);
      const size_t room =
          next == live.end()
              ? ~size_t{0}
              : static_cast<size_t>(next->first - one.run->start) / PageBytes();
      const size_t pages = arena.TryGrow(one.run, least, most);
      if (pages != 0) {
        ASSERT_GE(pages, least);
        ASSERT_LE(pages, std::min(most, room));
        ASSERT_EQ(one.run->pages, pages);
        live_pages += pages - old_pages;
        if (one.stamped) stamp_pages(one, old_pages, pages);
      } else {
        ASSERT_EQ(one.run->pages, old_pages);
      }
      ASSERT_TRUE(stamps_hold(one, one.run->pages, one.stamp));
    } else if (dice < 99) {
      const Live one = pick()->second;
      const size_t old_pages = one.run->pages;
      const size_t pages = 1 + random() % old_pages;
      arena.Shrink(one.run, pages);
      ASSERT_EQ(one.run->pages, pages);
      live_pages -= old_pages - pages;
      ASSERT_TRUE(stamps_hold(one, pages, one.stamp));
    } else if (random() % 2 == 0) {
      const size_t keep_bytes = random() % (8 * kMiB);
      arena.Purge(keep_bytes);
      ASSERT_LE(arena.FreeDirtyBytes(), keep_bytes);
    } else {
      const size_t dirty_bytes = arena.FreeDirtyBytes();
      const size_t purged_bytes = arena.PurgeFreedBefore(NowMs() - 1);
      ASSERT_EQ(arena.FreeDirtyBytes(), dirty_bytes - purged_bytes);
    }
    const Arena::Statistics statistics = arena.statistics();
    ASSERT_EQ(statistics.in_use_bytes, live_pages * PageBytes());
    ASSERT_EQ(statistics.in_use_runs, live.size());
    ASSERT_EQ(statistics.mapped_bytes, source.statistics().mapped_bytes);
    ASSERT_LE(statistics.free_dirty_bytes,
              std::max(16 * kMiB, statistics.in_use_bytes / 2));
    if (step % 500 == 0) arena.Verify();
  }
  for (auto& [start, one] : live) {
    ASSERT_TRUE(stamps_hold(one, one.run->pages, one.stamp));
    arena.Deallocate(one.run);
  }
  arena.Verify();
  arena.Purge(0);
  ASSERT_EQ(arena.statistics(), Arena::Statistics());
}

TEST(ArenaModel, AgreesWithAModelOfLiveIntervals) {
  AgreeWithAModelOfLiveIntervals(/*gap_bytes=*/kGranuleBytes);
}

TEST(ArenaModel, AgreesWithAModelWhereMappingsLieSideBySide) {
  AgreeWithAModelOfLiveIntervals(/*gap_bytes=*/0);
}

TEST(ArenaThreads, AllocateAndFreeAcrossThreads) {
  OsPageSource source;
  MetadataPool metadata(source);
  Arena arena(source, metadata);
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  std::vector<std::vector<PageRun*>> handed_over(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      std::vector<PageRun*> runs;
      for (int i = 0; i < 3000; ++i) {
        if (runs.size() < 20 || random() % 2 == 0) {
          PageRun* const run =
              arena.Allocate(1 + random() % 40, random() % 2 ? 65536 : 1);
          run->start[0] = static_cast<char>(t);
          runs.push_back(run);
        } else {
          PageRun* const run = runs[random() % runs.size()];
          EXPECT_EQ(Arena::RunOf(run->start), run);
          EXPECT_EQ(run->start[0], static_cast<char>(t));
          std::erase(runs, run);
          arena.Deallocate(run);
        }
      }
      handed_over[t] = runs;
    });
  }
  for (std::thread& thread : threads) thread.join();
  arena.Verify();
  for (const auto& runs : handed_over) {
    for (PageRun* run : runs) arena.Deallocate(run);
  }
  arena.Verify();
  EXPECT_EQ(arena.statistics().in_use_bytes, 0u);
  arena.Purge(0);
}

// Two threads allocate and free, and see their own bytes, while a third purges
// whatever is free.
TEST(ArenaThreads, APurgeTakesNothingThatIsInUse) {
  SettingsSaver settings_saver;
  PlacedPageSource source;
  source.gap_bytes = 0;
  OsPageSource metadata_source;
  MetadataPool metadata(metadata_source);
  Arena arena(source, metadata);
  // So that what is to be filled lies on huge pages.
  PageRun* const large = arena.Allocate(Arena::kGrownBytes / PageBytes(), 1);
  std::atomic<bool> done{false};
  std::thread purger([&] {
    for (int i = 0; !done; ++i) {
      arena.PurgeFreedBefore(NowMs() + 1);
      if (i % 16 == 0) arena.Purge(0);
      if (i % 64 == 0) arena.Verify();
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      std::vector<PageRun*> runs;
      for (int i = 0; i < 5000; ++i) {
        if (runs.size() < 30 && random() % 2 == 0) {
          PageRun* const run = arena.Allocate(
              1 + random() % 100, random() % 2 ? 65536 : 1,
              random() % 2 ? Filling::kFromLowEnd
                           : Filling::kUnknown);
          char* const last = run->end() - 1;
          if (run->zeroed) {
            EXPECT_TRUE(run->start[0] == 0 && *last == 0);
          }
          run->start[0] = *last = static_cast<char>(t + 1);
          runs.push_back(run);
        } else if (!runs.empty()) {
          PageRun* const run = runs[random() % runs.size()];
          EXPECT_EQ(run->start[0], static_cast<char>(t + 1));
          EXPECT_EQ(run->end()[-1], static_cast<char>(t + 1));
          std::erase(runs, run);
          arena.Deallocate(run);
        }
      }
      for (PageRun* run : runs) arena.Deallocate(run);
    });
  }
  for (std::thread& thread : threads) thread.join();
  done = true;
  purger.join();
  arena.Deallocate(large);
  arena.Verify();
  EXPECT_EQ(arena.statistics().in_use_bytes, 0u);
  arena.Purge(0);
  EXPECT_EQ(arena.statistics(), Arena::Statistics());
}

TEST_F(ArenaDeathTest, ASecondFreeIsReported) {
  PageRun* const run = Allocate(3);
  PageRun* const guard = Allocate(1);
  Deallocate({run});
  EXPECT_EXIT(arena_.Deallocate(run), testing::KilledBySignal(SIGABRT),
              "quarry: free of 0x[0-9a-f]+, a large block that is already "
              "free, aborting\n$");
  Deallocate({guard});
}

TEST_F(ArenaDeathTest, VerifyFindsABrokenInvariant) {
  PageRun* const run = Allocate(3);
  run->pages = 4;
  EXPECT_EXIT(arena_.Verify(), testing::KilledBySignal(SIGABRT),
              "check failed");
  run->pages = 3;
  PageMap::Set(run->start, kGranuleBytes, kNoTag, nullptr);
  EXPECT_EXIT(arena_.Verify(), testing::KilledBySignal(SIGABRT),
              "check failed");
  PageMap::Set(run->start, kGranuleBytes, kRunTag, run->segment);
  Deallocate({run});
}

}  // namespace
}  // namespace quarry
