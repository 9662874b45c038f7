#include "tcache/thread_cache.h"

#include <sys/mman.h>

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/thread_life.h"
#include "tests/arena/resident_pages.h"
#include "tests/arena/test_seed.h"
#include "tests/tcache/blocks.h"

namespace quarry {
namespace {

const bool one_arena = (settings.arenas_max = 1, true);

constexpr size_t kBytes = 112;

// Each test begins with empty magazines and ends with no block in use.
class ThreadCacheTest : public testing::Test {
 protected:
  ThreadCacheTest() {
    // As if there were the thread: else frees would go to a slow path to start it.
    maintenance_signal.FallAsleep();
    maintenance_signal.StayAwake();
    Free(Allocate(kBytes));
  }
  ~ThreadCacheTest() override {
    VerifyAll();
    ThreadCache::FlushThread();
    VerifyAll();
    EXPECT_EQ(SlabBytesInUse(), 0u) << "a slab is lost";
  }

  bool gave_back_ = false;

  static ThreadCache::Counters counters() {
    return thread_state.cache->counters();
  }
  static ThreadCache::ClassStatistics StatisticsOf(SizeClass size_class) {
    ThreadCache::ClassStatistics classes[kClasses] = {};
    thread_state.cache->AddStatistics(classes, true);
    return classes[size_class];
  }
};

TEST_F(ThreadCacheTest, AThreadWithoutACacheHasNothingAtHand) {
  void* const p = Allocate(kBytes);
  OnAnotherThread([&] {
    EXPECT_EQ(thread_state.cache, &no_cache);
    for (size_t bytes = 0; bytes <= kSmallMaxBytes; bytes += 16) {
      EXPECT_EQ(ThreadCache::TryPop(bytes), nullptr);
    }
    char local[kBytes];
    for (void* other : {p, static_cast<void*>(local),
                        static_cast<void*>(nullptr)}) {
      EXPECT_FALSE(TryPush(other));
      EXPECT_FALSE(TryPushSized(other, kBytes));
    }
    EXPECT_FALSE(TryPushSized(nullptr, 0));
    ThreadCache::FlushThread();
    EXPECT_EQ(thread_state.cache, &no_cache);
  });
  Free(p);
}

// Each thread pays for what it touches.
TEST_F(ThreadCacheTest, ANewCacheTouchesTwoPages) {
  const size_t bytes = RoundUp(ThreadCache::AllocationBytes(), PageBytes());
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const cache = new (memory) ThreadCache(ThreadCache::InZeroMemory());
  cache->Open(thread_state.cache->tag(), thread_state.cache->arena());
  EXPECT_LE(ResidentPages(memory, bytes), 2u);
  cache->Verify(/*with_magazines=*/true);
  munmap(memory, bytes);
}

// The tag of what is not Quarry's is that of a thread without a cache.
TEST_F(ThreadCacheTest, NoClassServesNoSize) {
  // In the home window, where the heap is.
  void* const foreign = OsPages().Map(kGranuleBytes, kGranuleBytes);
  ASSERT_EQ(PageMap::TagOf(foreign), kNoTag);
  const auto check = [&] {
    EXPECT_FALSE(TryPush(foreign));
    EXPECT_FALSE(TryPushCold(foreign));
    EXPECT_FALSE(TryPushColdSized(foreign, 0));
    for (size_t bytes : {size_t{0}, size_t{1}, ~size_t{0}, size_t{1} << 32}) {
      EXPECT_FALSE(TryPushSized(foreign, bytes));
    }
  };
  check();
  OnAnotherThread([&] {
    check();
    LeaveFastPath();
    check();
  });
  OsPages().Unmap(foreign, kGranuleBytes);
}

TEST_F(ThreadCacheTest, BlocksOfEveryClassAreDistinctAndAligned) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const size_t bytes = BlockBytes(c);
    const size_t alignment = bytes & -bytes;
    std::vector<char*> blocks;
    for (size_t i = 0; i < 300; ++i) {
      char* const p = static_cast<char*>(AllocateOfClass(c));
      ASSERT_NE(p, nullptr);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(p) % alignment, 0u);
      memset(p, static_cast<int>(i % 251), bytes);
      blocks.push_back(p);
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      ASSERT_EQ(blocks[i][0], static_cast<char>(i % 251));
      ASSERT_EQ(memcmp(blocks[i], blocks[i] + 1, bytes - 1), 0);
      Free(blocks[i]);
    }
    ThreadCache::FlushThread();
  }
}

TEST_F(ThreadCacheTest, EverySizeGetsABlockOfItsClass) {
  for (size_t bytes = 0; bytes <= kSmallMaxBytes; ++bytes) {
    void* const p = Allocate(bytes);
    ASSERT_EQ(Slab::Of(p)->size_class(), ClassOf(bytes));
    Free(p);
    // And now from the magazine.
    ASSERT_EQ(ThreadCache::TryPop(bytes), p);
    Free(p);
  }
  EXPECT_EQ(ThreadCache::TryPop(kSmallMaxBytes + 1), nullptr);
}

TEST_F(ThreadCacheTest, ServesTheBlockFreedLastFirst) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  Free(p);
  Free(q);
  EXPECT_EQ(Allocate(kBytes), q);
  EXPECT_EQ(Allocate(kBytes), p);
  Free(p);
  Free(q);
}

TEST_F(ThreadCacheTest, TheFastPathLeavesWhatIsNotItsOwn) {
  char* const p = static_cast<char*>(Allocate(kBytes));
  EXPECT_FALSE(TryPush(p + 16)) << "inside a block";
  EXPECT_FALSE(TryPush(p + 1));
  char local[kBytes];
  EXPECT_FALSE(TryPush(local)) << "not Quarry's";
  OnAnotherThread([&] {
    void* const other = Allocate(kBytes);
    EXPECT_FALSE(TryPush(p)) << "another thread's";
    EXPECT_FALSE(TryPushSized(p, kBytes));
    Free(other);
  });
  EXPECT_TRUE(TryPush(p));
  EXPECT_FALSE(TryPush(p)) << "the block freed last";
  EXPECT_FALSE(TryPushSized(p, kBytes));
}

TEST_F(ThreadCacheTest, ASizedFreeIsFastForTheSizesOfTheClass) {
  for (size_t bytes = 0; bytes <= 300; ++bytes) {
    void* const p = Allocate(kBytes);
    const bool served = ClassOf(bytes) == ClassOf(kBytes);
    ASSERT_EQ(TryPushSized(p, bytes), served) << bytes;
    if (!served) Free(p);
  }
}

TEST_F(ThreadCacheTest, AMagazineGrowsAndOverflowsIntoTheDepotWhole) {
  const SizeClass c = ClassOf(kBytes);
  std::vector<void*> blocks;
  for (int i = 0; i < 1000; ++i) blocks.push_back(Allocate(kBytes));
  const ThreadCache::Counters before = counters();
  for (void* p : blocks) Free(p);
  EXPECT_EQ(counters().flushes, before.flushes) << "the depot has room";
  EXPECT_GT(StatisticsOf(c).depot_blocks, 400u);
  VerifyAll();
  // They come back without a look at the slabs.
  std::set<void*> again;
  for (int i = 0; i < 1000; ++i) again.insert(Allocate(kBytes));
  EXPECT_EQ(again, std::set<void*>(blocks.begin(), blocks.end()));
  EXPECT_EQ(StatisticsOf(c).depot_blocks, 0u);
  EXPECT_EQ(counters().refills, before.refills);
  for (void* p : again) Free(p);
}

// A need that rises and falls about the edge of a magazine takes the cache's lock
// once in many calls: neither the depot nor a slab is asked.
TEST_F(ThreadCacheTest, TheEdgeOfAMagazineIsCrossedWithoutTheDepot) {
  const SizeClass c = ClassOf(kBytes);
  ThreadCache* const cache = thread_state.cache;
  std::vector<void*> blocks;
  for (int i = 0; i < 1000; ++i) blocks.push_back(Allocate(kBytes));
  const auto free_one = [&] {
    Free(blocks.back());
    blocks.pop_back();
  };
  // Until the magazine has just become the spare.
  while (cache->MagazineBlocks(c) < 129) free_one();
  const uint64_t refills = counters().refills;
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 5; ++i) blocks.push_back(Allocate(kBytes));
    for (int i = 0; i < 5; ++i) free_one();
    EXPECT_EQ(StatisticsOf(c).depot_blocks, 0u);
    EXPECT_EQ(counters().refills, refills);
    VerifyAll();
  }
  // It may grow to the size of two, is cut in half, and then overflows.
  size_t most = 0;
  while (StatisticsOf(c).depot_blocks == 0) {
    most = std::max(most, cache->MagazineBlocks(c));
    free_one();
    VerifyAll();
  }
  EXPECT_GE(most, 2 * 128u);
  EXPECT_LE(most, 2 * 129u);
  while (!blocks.empty()) free_one();
}

TEST_F(ThreadCacheTest, AClassTurnsColdWhenItsDepotIsFull) {
  const SizeClass c = ClassOf(kBytes);
  std::vector<void*> blocks;
  for (int i = 0; i < 5000; ++i) blocks.push_back(Allocate(kBytes));
  void* const last = blocks.back();
  blocks.pop_back();
  bool was_cold = false;
  for (void* p : blocks) {
    const bool is_warm = TryPush(p);
    EXPECT_FALSE(was_cold && is_warm);
    if (is_warm) continue;
    was_cold = true;
    memset(p, 0x77, kBytes);
    ASSERT_TRUE(TryPushCold(p));
    EXPECT_EQ(static_cast<char*>(p)[0], 0x77) << "a cold free touches nothing";
    EXPECT_EQ(static_cast<char*>(p)[kBytes - 1], 0x77);
    EXPECT_EQ(thread_state.cache->MagazineBlocks(c), 0u)
        << "nothing stays out of reach";
  }
  EXPECT_TRUE(was_cold);
  EXPECT_FALSE(TryPushSized(last, kBytes));
  char* const inside = static_cast<char*>(last) + 16;
  EXPECT_FALSE(TryPushCold(inside));
  EXPECT_FALSE(TryPushColdSized(inside, kBytes));
  for (const size_t wrong : {size_t{0}, kBytes + 1, kBytes + (size_t{1} << 31),
                             kBytes + (size_t{1} << 32), ~size_t{0}}) {
    EXPECT_FALSE(TryPushColdSized(last, wrong)) << wrong;
  }
  // The notes are few, and so are the blocks at hand.
  const ThreadCache::ClassStatistics statistics = StatisticsOf(c);
  EXPECT_LE(statistics.used_blocks,
            statistics.depot_blocks + thread_state.cache->MagazineBlocks(c) +
                64 + 1);
  EXPECT_LE(statistics.depot_blocks * kBytes, 512 * 1024u);
  VerifyAll();
  // Warm again once enough of them are used.
  std::vector<void*> again;
  while (!TryPush(last)) {
    ASSERT_LT(again.size(), 5000u);
    again.push_back(Allocate(kBytes));
  }
  EXPECT_GT(again.size(), 200u);
  for (void* p : again) Free(p);
}

TEST_F(ThreadCacheTest, ColdBlocksOfManyClassesGoBackToTheirSlabs) {
  std::mt19937_64 random(TestSeed());
  std::vector<void*> blocks;
  for (size_t bytes : {size_t{16}, size_t{48}, kBytes, size_t{512}}) {
    for (int i = 0; i < 4000; ++i) blocks.push_back(Allocate(bytes));
  }
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (size_t i = 0; i < blocks.size(); ++i) {
    Free(blocks[i]);
    if (i % 1000 == 0) VerifyAll();
  }
}

// What is freed in no order has a block in some magazine in each slab.
TEST_F(ThreadCacheTest, MagazinesGiveWayBeforeFreshPagesAreTouched) {
  std::mt19937_64 random(TestSeed());
  // What is free and dirty would serve first.
  ArenaAt(0).Purge(0);
  const SizeClass cold = ClassOf(64);
  const SizeClass warm = ClassOf(128);
  std::vector<void*> blocks;
  for (size_t bytes = 0; bytes < size_t{16} << 20; bytes += 64) {
    blocks.push_back(Allocate(64));
  }
  std::vector<void*> others;
  for (size_t bytes = 0; bytes < size_t{2} << 20; bytes += 128) {
    others.push_back(Allocate(128));
  }
  const size_t most_bytes = SlabBytesInUse();
  std::shuffle(blocks.begin(), blocks.end(), random);
  std::shuffle(others.begin(), others.end(), random);
  // Too few to be cold, so that they stay where they are.
  constexpr size_t kWarmBlocks = 300;
  for (size_t i = 0; i < kWarmBlocks; ++i) Free(others[i]);
  for (void* p : blocks) Free(p);
  EXPECT_GT(StatisticsOf(cold).depot_blocks, 0u);
  EXPECT_GT(StatisticsOf(warm).depot_blocks, 0u);
  // A magazine of the cold class, out of the depot.
  void* const kept = Allocate(64);
  EXPECT_GT(thread_state.cache->MagazineBlocks(cold), 0u);
  EXPECT_GT(thread_state.cache->MagazineBlocks(warm), 0u);
  blocks.clear();
  for (size_t bytes = 0; bytes < size_t{15} << 20; bytes += 1024) {
    blocks.push_back(Allocate(1024));
  }
  for (const SizeClass c : {cold, warm}) {
    EXPECT_EQ(StatisticsOf(c).depot_blocks, 0u);
    EXPECT_EQ(thread_state.cache->MagazineBlocks(c), 0u);
  }
  EXPECT_EQ(StatisticsOf(cold).slabs, 1u) << "of the block in use";
  EXPECT_EQ(StatisticsOf(warm).used_blocks, others.size() - kWarmBlocks);
  EXPECT_LE(SlabBytesInUse(), most_bytes);
  VerifyAll();
  // Once: what follows are fresh pages, and nothing is flushed for them.
  const uint64_t flushes = counters().flushes;
  for (size_t bytes = 0; bytes < size_t{4} << 20; bytes += 1024) {
    blocks.push_back(Allocate(1024));
  }
  EXPECT_EQ(counters().flushes, flushes);
  // The class is warm again, and turns cold as before.
  std::vector<void*> again;
  for (int i = 0; i < 20000; ++i) again.push_back(Allocate(64));
  for (void* p : again) Free(p);
  EXPECT_GT(StatisticsOf(cold).depot_blocks, 0u);
  for (void* p : blocks) Free(p);
  for (size_t i = kWarmBlocks; i < others.size(); ++i) Free(others[i]);
  Free(kept);
}

TEST_F(ThreadCacheTest, CachedBytesAreBounded) {
  constexpr size_t kKiB = 1024;
  for (size_t bytes : {size_t{16}, kBytes, 8 * kKiB, 9 * kKiB, kSlabsOnlyMaxBytes,
                       kSmallMaxBytes}) {
    const SizeClass c = ClassOf(bytes);
    std::vector<void*> blocks;
    for (size_t i = 0; i < 8192 * kKiB / bytes; ++i) {
      blocks.push_back(Allocate(bytes));
    }
    for (void* p : blocks) Free(p);
    // The depot, two magazines and what was one too many, and notes.
    const bool is_large = bytes > 8 * kKiB;
    const size_t depot_bytes = (is_large ? 4096 : 512) * kKiB;
    const size_t magazine_bytes = std::max(64 * kKiB, 4 * bytes);
    const size_t most_bytes =
        depot_bytes + 2 * magazine_bytes + (is_large ? 1 : 65) * bytes;
    EXPECT_LE(StatisticsOf(c).used_blocks * bytes, most_bytes) << bytes;
    EXPECT_GT(StatisticsOf(c).used_blocks * bytes, depot_bytes / 8) << bytes;
    VerifyAll();
    ThreadCache::FlushThread();
  }
}

TEST_F(ThreadCacheTest, KeepsOneEmptySlabOfAClass) {
  const SizeClass c = ClassOf(kSmallMaxBytes);
  std::vector<void*> blocks;
  for (size_t i = 0; i < 100 * SlabBlocks(c); ++i) {
    blocks.push_back(AllocateOfClass(c));
  }
  EXPECT_GE(StatisticsOf(c).slabs, 100u);
  const uint64_t returned = counters().slabs_returned;
  for (void* p : blocks) Free(p);
  EXPECT_GT(counters().slabs_returned, returned);
  ThreadCache::FlushThread();
  EXPECT_EQ(StatisticsOf(c).slabs, 0u);
}

// Of two slabs with free blocks the fuller one is used, so that the other may
// become empty.
TEST_F(ThreadCacheTest, RefillsFromTheFullestSlab) {
  const SizeClass c = ClassOf(kSlabBytes / 8);
  std::map<Slab*, std::vector<void*>> slabs;
  for (size_t i = 0; i < 3 * SlabBlocks(c); ++i) {
    void* const p = AllocateOfClass(c);
    slabs[Slab::Of(p)].push_back(p);
  }
  ASSERT_EQ(slabs.size(), 3u);
  ThreadCache::FlushThread();
  // 7, 2 and 4 of 8 blocks in use.
  const size_t keep[] = {7, 2, 4};
  size_t at = 0;
  Slab* fullest = nullptr;
  for (auto& [slab, blocks] : slabs) {
    if (at == 0) fullest = slab;
    for (; blocks.size() > keep[at]; blocks.pop_back()) Free(blocks.back());
    ++at;
  }
  ThreadCache::FlushThread();
  void* const p = AllocateOfClass(c);
  EXPECT_EQ(Slab::Of(p), fullest);
  Free(p);
  for (auto& [slab, blocks] : slabs) {
    for (void* block : blocks) Free(block);
  }
}

// What a slab makes resident too early is little beside the others of its class.
TEST_F(ThreadCacheTest, TheMoreFullSlabsAClassHasTheMorePagesComeAtOnce) {
  if (!CanPopulate()) GTEST_SKIP() << "the system cannot";

  OnAnotherThread([] {
    Free(Allocate(kBytes));
    ThreadCache::FlushThread();
    ArenaAt(0).Purge(0);
    std::vector<void*> blocks;
    for (const size_t pages : {1, 1, 2, 2, 4, 4}) {
      const uint64_t slabs = counters().slabs_made;
      while (counters().slabs_made == slabs) blocks.push_back(Allocate(kBytes));
      EXPECT_EQ(ResidentPages(Slab::Of(blocks.back())->start(), kSlabBytes),
                std::min(pages, kSlabBytes / PageBytes()));
    }
    for (void* block : blocks) Free(block);
  });
}

// Of an arena that is large otherwise. Nothing is freed, so only what a huge page made
// resident too early is dirty.
class HugePagesTest : public ThreadCacheTest {
 protected:
  HugePagesTest() : parked_caches_(settings.parked_caches.exchange(0)) {
    ThreadCache::FlushThread();
    static_cast<void>(cache_registry.CloseParked(/*all=*/true));
    // Enough also where the system had none for the test before.
    for (auto*& run : large_) {
      run = arena_.Allocate((size_t{32} << 20) / PageBytes(), 1);
    }
    arena_.Purge(0);
    // Nor is anything expected of what the arena grows by, after ranges that nobody touched.
    std::array<decltype(arena_.Allocate(1, 1)), 3 * GrowthHistory::kRangesOfSample> untouched;
    for (auto*& run : untouched) {
      run = arena_.Allocate(kHugePageBytes / 2 / PageBytes(), kHugePageBytes);
    }
    for (auto* run : untouched) arena_.Deallocate(run, 0);
    arena_.Purge(0);
    bytes_before_ = SlabBytesInUse();
    OrphansOf(0).ForEach([](Slab*) { ADD_FAILURE() << "would be adopted"; });
  }
  ~HugePagesTest() override {
    for (auto* run : large_) arena_.Deallocate(run);
    settings.parked_caches = parked_caches_;
  }

  // In a thread whose cache has had no slab.
  template <typename Step>
  void InANewThread(Step step) {
    OnAnotherThread([&] {
      step();
      for (void* block : blocks_) Free(block);
    });
  }

  // Until there is a huge page, or there are so many slabs of the class.
  void FillSlabs(SizeClass size_class, size_t slabs) {
    for (size_t i = 0; i < slabs * SlabBlocks(size_class); ++i) {
      if (arena_.FreeDirtyBytes() != 0) return;
      blocks_.push_back(AllocateOfClass(size_class));
    }
  }
  void FillSlabsOfEach(size_t slabs) {
    for (SizeClass c = kFirstClass; c < kClasses; ++c) FillSlabs(c, slabs);
  }

  size_t OwnBytes() const { return SlabBytesInUse() - bytes_before_; }

  Arena& arena_ = ArenaAt(0);

 private:
  const size_t parked_caches_;
  std::array<decltype(arena_.Allocate(1, 1)), 2> large_;
  size_t bytes_before_;
  std::vector<void*> blocks_;
};

// Each thread has a slab of each class, most of them hardly touched.
TEST_F(HugePagesTest, NoneForFewSlabsOfManyClasses) {
  InANewThread([&] {
    FillSlabsOfEach(2);
    EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
    EXPECT_GT(OwnBytes(), 2 * Arena::kGrownBytes);
    FillSlabsOfEach(1);
    EXPECT_NE(arena_.FreeDirtyBytes(), 0u);
    EXPECT_GT(OwnBytes(), size_t{8} << 20);
  });
}

TEST_F(HugePagesTest, ForFourSlabsOfEachClass) {
  InANewThread([&] {
    FillSlabsOfEach(4);
    EXPECT_NE(arena_.FreeDirtyBytes(), 0u);
    EXPECT_GT(OwnBytes(), Arena::kGrownBytes);
    EXPECT_LE(OwnBytes(), Arena::kGrownBytes + kHugePageBytes + kGranuleBytes);
  });
}

TEST_F(HugePagesTest, ForManySlabsOfOneClass) {
  InANewThread([&] {
    for (SizeClass c = kClasses - 8; c < kClasses; ++c) FillSlabs(c, 1);
    EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
    const size_t before = OwnBytes();
    FillSlabs(ClassOf(kBytes), 64);
    EXPECT_EQ(arena_.FreeDirtyBytes(), kHugePageBytes - kGranuleBytes);
    EXPECT_GT(OwnBytes() - before, 16 * kGranuleBytes);
    EXPECT_LE(OwnBytes() - before, kHugePageBytes + 17 * kGranuleBytes);
  });
}

// A request may leave the end of such a block untouched, and then of a huge page as much.
TEST_F(HugePagesTest, NoneForBlocksOfMoreThanSixteenKibibytes) {
  InANewThread([&] {
    for (SizeClass c = ClassOf(kSlabsOnlyMaxBytes) + 1; c < kClasses; ++c) {
      FillSlabs(c, 100);
    }
    EXPECT_EQ(arena_.FreeDirtyBytes(), 0u);
    EXPECT_GT(OwnBytes(), size_t{16} << 20);
  });
}

TEST_F(ThreadCacheTest, ARefillTakesNoMoreThanSixteenKibibytes) {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    ThreadCache::FlushThread();
    std::vector<void*> blocks;
    size_t most = 0;
    const auto allocate = [&](int count) {
      for (int i = 0; i < count; ++i) {
        blocks.push_back(AllocateOfClass(c));
        // And the one that was asked for.
        most = std::max(most, thread_state.cache->MagazineBlocks(c) + 1);
      }
    };
    const size_t bound =
        std::min<size_t>(std::max<size_t>(16384 / BlockBytes(c), 1), 64);
    allocate(600);
    EXPECT_LE(most, bound) << BlockBytes(c);
    // A page of them, if it is a fresh one.
    EXPECT_GE(most, std::min<size_t>(4096 / BlockBytes(c), 2)) << BlockBytes(c);
    // More, where they were given out before: in slabs that are full but for those that
    // another thread has freed. How many there are in the last of these is by chance.
    const size_t freed = blocks.size() / 2;
    OnAnotherThread([&] {
      for (size_t i = 0; i < freed; ++i) Free(blocks[i]);
    });
    blocks.erase(blocks.begin(), blocks.begin() + static_cast<long>(freed));
    most = 0;
    allocate(600);
    EXPECT_LE(most, bound) << BlockBytes(c);
    if (bound > 2) {
      EXPECT_GT(2 * most, bound) << BlockBytes(c);
    }
    for (void* p : blocks) Free(p);
  }
}

TEST_F(ThreadCacheTest, CountsWhatItDoes) {
  const ThreadCache::Counters before = counters();
  void* const p = Allocate(kBytes);
  EXPECT_GE(counters().refills, before.refills);
  Free(p);
  ThreadCache::FlushThread();
  EXPECT_GT(counters().flushes, before.flushes);
  EXPECT_GT(counters().slabs_returned, before.slabs_returned);
  void* const q = Allocate(kBytes);
  EXPECT_GT(counters().slabs_made, before.slabs_made);
  const ThreadCache::ClassStatistics statistics = StatisticsOf(ClassOf(kBytes));
  EXPECT_EQ(statistics.slabs, 1u);
  EXPECT_EQ(statistics.used_blocks,
            1 + thread_state.cache->MagazineBlocks(ClassOf(kBytes)));
  EXPECT_EQ(statistics.used_blocks + statistics.free_blocks,
            SlabBlocks(ClassOf(kBytes)));
  Free(q);
}

// Against a map from each block in use to what was written there.
TEST_F(ThreadCacheTest, AgreesWithAModel) {
  std::mt19937_64 random(TestSeed());
  struct Content {
    char* p;
    size_t bytes;
    char value;
  };
  std::vector<Content> in_use;
  std::map<char*, size_t> extent;
  const auto check = [](const Content& content) {
    for (size_t i = 0; i < content.bytes; ++i) {
      if (content.p[i] != content.value) return false;
    }
    return true;
  };
  size_t most_bytes = 0;
  size_t goal = 0;
  for (int step = 0; step < 60000; ++step) {
    if (step % 3000 == 0) {
      goal = random() % 3000;
      most_bytes = kSmallMaxBytes >> (random() % 11);
    }
    if (random() % 4000 == 0) ThreadCache::FlushThread();
    if (in_use.empty() || in_use.size() + random() % 200 < goal) {
      const size_t bytes = random() % (most_bytes + 1);
      char* const p = static_cast<char*>(Allocate(bytes));
      ASSERT_NE(p, nullptr);
      const size_t block_bytes = BlockBytes(ClassOf(bytes));
      // Apart from both neighbours.
      const auto next = extent.upper_bound(p);
      ASSERT_TRUE(next == extent.end() || p + block_bytes <= next->first);
      if (next != extent.begin()) {
        const auto previous = std::prev(next);
        ASSERT_LE(previous->first + previous->second, p);
      }
      extent[p] = block_bytes;
      const char value = static_cast<char>(random());
      memset(p, value, bytes);
      in_use.push_back({p, bytes, value});
    } else {
      std::swap(in_use[random() % in_use.size()], in_use.back());
      ASSERT_TRUE(check(in_use.back()));
      char* const p = in_use.back().p;
      extent.erase(p);
      const size_t bytes = in_use.back().bytes;
      if (random() % 2 == 0 || !TryPushSized(p, bytes)) Free(p);
      in_use.pop_back();
    }
    if (step % 2000 == 0) VerifyAll();
  }
  for (const Content& content : in_use) {
    ASSERT_TRUE(check(content));
    Free(content.p);
  }
}

// All memory that the system gives goes to blocks, then nullptr; and every
// block that is freed can be had again.
TEST_F(ThreadCacheTest, OutOfMemoryLeavesTheHeapIntact) {
  if (kUnderAsan || kUnderTsan) {
    GTEST_SKIP() << "the sanitizer needs more address space than any limit";
  }
  const auto exhaust = [] {
    rlimit limit;
    limit.rlim_cur = limit.rlim_max =
        OsPages().statistics().mapped_bytes + (size_t{96} << 20);
    QUARRY_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    for (size_t bytes : {size_t{16}, kBytes, kSmallMaxBytes}) {
      void* last = nullptr;
      while (void* p = Allocate(bytes)) {
        *static_cast<void**>(p) = last;
        last = p;
      }
      QUARRY_CHECK(last != nullptr);
      QUARRY_CHECK(Allocate(bytes) == nullptr);
      VerifyAll();
      // What is freed can be had again.
      void* const first = last;
      last = *static_cast<void**>(first);
      Free(first);
      QUARRY_CHECK(Allocate(bytes) == first);
      *static_cast<void**>(first) = last;
      last = first;
      while (last != nullptr) {
        void* const next = *static_cast<void**>(last);
        Free(last);
        last = next;
      }
      ThreadCache::FlushThread();
      VerifyAll();
    }
    QUARRY_CHECK(SlabBytesInUse() == 0);
    exit(0);
  };
  EXPECT_EXIT(exhaust(), testing::ExitedWithCode(0), "");
}

using ThreadCacheDeathTest = ThreadCacheTest;

TEST_F(ThreadCacheDeathTest, AFreeRepeatedAtOnceIsFoundAtOnce) {
  for (size_t bytes : {size_t{16}, kBytes, kSmallMaxBytes}) {
    void* const p = Allocate(bytes);
    EXPECT_EXIT(
        {
          Free(p);
          Free(p);
        },
        testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
    Free(p);
  }
}

// The second push makes a ring of the magazine's list.
TEST_F(ThreadCacheDeathTest, ADoubleFreeInOneMagazineIsFoundAtFlush) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  EXPECT_EXIT(
      {
        Free(p);
        Free(q);
        Free(p);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
  Free(q);
}

TEST_F(ThreadCacheDeathTest, ADoubleFreeIsFoundWhenTheThreadExits) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  EXPECT_EXIT(
      {
        Free(p);
        Free(q);
        Free(p);
        EndThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
  Free(q);
}

TEST_F(ThreadCacheDeathTest, ADoubleFreeAfterAFlushIsFoundAtTheNext) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  EXPECT_EXIT(
      {
        Free(p);
        ThreadCache::FlushThread();
        Free(p);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
  Free(q);
}

TEST_F(ThreadCacheTest, TidyTakesFromTheDepotWhatStayedThere) {
  const SizeClass c = ClassOf(kBytes);
  std::vector<void*> blocks;
  for (int i = 0; i < 4000; ++i) blocks.push_back(Allocate(kBytes));
  for (void* p : blocks) Free(p);
  const size_t full = StatisticsOf(c).depot_blocks;
  ASSERT_GT(full, 2000u);
  ThreadCache* const cache = thread_state.cache;
  EXPECT_TRUE(cache->Tidy(false, &gave_back_)) << "the owner was at work";
  EXPECT_EQ(StatisticsOf(c).depot_blocks, full);
  // A third is used again and comes back, so only the rest was not wanted.
  blocks.clear();
  while (StatisticsOf(c).depot_blocks > full * 2 / 3) {
    blocks.push_back(Allocate(kBytes));
  }
  const size_t unused = StatisticsOf(c).depot_blocks;
  for (void* p : blocks) Free(p);
  const size_t before = StatisticsOf(c).depot_blocks;
  EXPECT_TRUE(cache->Tidy(false, &gave_back_));
  EXPECT_EQ(StatisticsOf(c).depot_blocks, before - unused);
  VerifyAll();
  // Left alone, it all goes, and there is nothing more to do.
  EXPECT_FALSE(cache->Tidy(false, &gave_back_));
  EXPECT_EQ(StatisticsOf(c).depot_blocks, 0u);
  EXPECT_FALSE(cache->Tidy(false, &gave_back_));
  VerifyAll();
}

TEST_F(ThreadCacheTest, UrgentTidyWaitsForNothing) {
  std::vector<void*> blocks;
  for (int i = 0; i < 4000; ++i) blocks.push_back(Allocate(kBytes));
  for (void* p : blocks) Free(p);
  EXPECT_FALSE(thread_state.cache->Tidy(true, &gave_back_));
  EXPECT_EQ(StatisticsOf(ClassOf(kBytes)).depot_blocks, 0u);
}

TEST_F(ThreadCacheTest, TidyOfAnIdleThreadReturnsEmptySlabsAndTails) {
  constexpr size_t kLarge = 4096;
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(Allocate(kLarge));
    memset(blocks.back(), 1, kLarge);
  }
  while (blocks.size() > 1) {
    Free(blocks.back());
    blocks.pop_back();
  }
  ThreadCache* const cache = thread_state.cache;
  while (cache->Tidy(false, &gave_back_)) {
  }
  const ThreadCache::ClassStatistics after = StatisticsOf(ClassOf(kLarge));
  EXPECT_EQ(after.depot_blocks, 0u);
  EXPECT_LE(after.slabs, 2u) << "one block, and what the magazine holds";
  VerifyAll();
  Free(blocks[0]);
}

// A size that the program has turned away from, while the thread is at work.
TEST_F(ThreadCacheTest, TidyOfABusyThreadGivesBackThePagesOfIdleSlabs) {
  const size_t page_bytes = PageBytes();
  std::vector<char*> blocks;
  for (int i = 0; i < 4000; ++i) {
    blocks.push_back(static_cast<char*>(Allocate(page_bytes)));
    memset(blocks.back(), 1, page_bytes);
  }
  // One in ten stays, so that few slabs become empty.
  std::vector<char*> freed;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i % 10 == 0) continue;
    Free(blocks[i]);
    freed.push_back(blocks[i]);
  }
  ThreadCache* const cache = thread_state.cache;
  const auto resident = [&] {
    size_t pages = 0;
    for (char* block : freed) {
      unsigned char is_resident = 0;
      if (mincore(block, page_bytes, &is_resident) == 0) {
        pages += is_resident & 1;
      }
    }
    return pages;
  };
  for (int tick = 0; tick < 8; ++tick) {
    // Another size, and the lock.
    std::vector<void*> others;
    for (int i = 0; i < 1000; ++i) others.push_back(Allocate(kBytes));
    for (void* p : others) Free(p);
    EXPECT_TRUE(cache->Tidy(false, &gave_back_)) << "the owner is at work";
    VerifyAll();
    if (tick < 3) {
      EXPECT_GT(resident(), freed.size() / 2);
    }
  }
  EXPECT_LT(resident(), freed.size() / 20);
  for (size_t i = 0; i < blocks.size(); i += 10) {
    EXPECT_EQ(blocks[i][0], 1);
    EXPECT_EQ(blocks[i][page_bytes - 1], 1);
    Free(blocks[i]);
  }
}

TEST_F(ThreadCacheTest, TidyTakesRemoteFreesInForAnIdleOwner) {
  const SizeClass c = ClassOf(kBytes);
  std::vector<void*> blocks;
  for (int i = 0; i < 2000; ++i) blocks.push_back(Allocate(kBytes));
  const size_t slabs = StatisticsOf(c).slabs;
  ThreadCache* const cache = thread_state.cache;
  OnAnotherThread([&] {
    for (void* p : blocks) Free(p);
    while (cache->Tidy(false, &gave_back_)) {
    }
  });
  EXPECT_LT(StatisticsOf(c).slabs, slabs / 2);
  EXPECT_GE(counters().drained_blocks, 2000u - kGranuleBytes / kBytes);
}

TEST_F(ThreadCacheTest, AFreedRunComesBackToTheNextRequestOfItsSize) {
  Arena* const arena = thread_state.cache->arena();
  auto* const run = arena->Allocate(20, PageBytes());
  ASSERT_NE(run, nullptr);
  EXPECT_EQ(ThreadCache::TakeRun(20 * PageBytes()), nullptr);
  EXPECT_FALSE(ThreadCache::TryKeepRun(run->start)) << "nobody knows its list";
  ThreadCache::FreeRun(run);
  EXPECT_FALSE(run->IsInUse());
  EXPECT_FALSE(run->IsFree()) << "the thread keeps it";
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 20 * PageBytes());
  EXPECT_EQ(ThreadCache::TakeRun(20 * PageBytes()), run->start);
  EXPECT_TRUE(ThreadCache::TryKeepRun(run->start));
  EXPECT_FALSE(ThreadCache::TryKeepRun(run->start)) << "freed twice";
  ThreadCache::FlushThread();
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 0u);
  EXPECT_EQ(arena->statistics().in_use_bytes, SlabBytesInUse());
}

TEST_F(ThreadCacheTest, AKeptRunServesRequestsOfUpToAFifthLess) {
  Arena& arena = *thread_state.cache->arena();
  auto* const run = arena.Allocate(20, PageBytes());
  ASSERT_NE(run, nullptr);
  for (const size_t pages : {18, 16}) {
    ThreadCache::FreeRun(run);
    EXPECT_EQ(ThreadCache::TakeRun(pages * PageBytes()), run->start);
    EXPECT_EQ(run->pages, 20u);
  }
  ThreadCache::FreeRun(run);
  EXPECT_EQ(ThreadCache::TakeRun(15 * PageBytes()), nullptr);
  EXPECT_EQ(ThreadCache::TakeRun(22 * PageBytes()), nullptr);
  ThreadCache::FlushThread();
}

TEST_F(ThreadCacheTest, ARunWhoseLengthHasChangedIsKeptAsWhatItIsNow) {
  Arena& arena = *thread_state.cache->arena();
  auto* const run = arena.Allocate(28, PageBytes());
  ASSERT_NE(run, nullptr);
  void* const start = run->start;
  ThreadCache::FreeRun(run);
  ASSERT_EQ(ThreadCache::TakeRun(28 * PageBytes()), start);
  const auto expect_kept_as = [&](size_t pages) {
    if (!ThreadCache::TryKeepRun(start)) ThreadCache::FreeRun(run);
    EXPECT_EQ(ThreadCache::TakeRun(28 * PageBytes()),
              pages == 28 ? start : nullptr);
    if (pages != 28) {
      EXPECT_EQ(ThreadCache::TakeRun(pages * PageBytes()), start);
    }
  };
  expect_kept_as(28);
  arena.Shrink(run, 20);
  expect_kept_as(20);
  ASSERT_EQ(arena.TryGrow(run, 24, 24), 24u);
  expect_kept_as(24);
  // And when it has been the arena's meanwhile.
  arena.Deallocate(run);
  auto* const piece = arena.Allocate(18, PageBytes());
  ASSERT_EQ(piece->start, start);
  ThreadCache::FreeRun(piece);
  EXPECT_EQ(ThreadCache::TakeRun(24 * PageBytes()), nullptr);
  EXPECT_EQ(ThreadCache::TakeRun(18 * PageBytes()), start);
  arena.Deallocate(piece);
}

TEST_F(ThreadCacheTest, ARunGrowsIntoWhatTheThreadKeepsBehindIt) {
  Arena& arena = *thread_state.cache->arena();
  // In one piece of the arena, one behind the other, and then one that stays in use: what
  // is dirty serves first.
  ThreadCache::FlushThread();
  arena.Purge(0);
  auto* const piece = arena.Allocate(97, PageBytes());
  ASSERT_NE(piece, nullptr);
  char* const start = piece->start;
  arena.Deallocate(piece);
  std::array<quarry::Run*, 4> runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    runs[i] = arena.Allocate(24, PageBytes());
    ASSERT_EQ(runs[i]->start, start + i * 24 * PageBytes());
  }
  auto* const guard = arena.Allocate(1, PageBytes());
  ASSERT_EQ(guard->start, start + 96 * PageBytes());
  EXPECT_EQ(ThreadCache::TryGrowRun(runs[0], 25, 28), 0u);
  ThreadCache::FreeRun(runs[1]);
  ThreadCache::FreeRun(runs[2]);
  ASSERT_EQ(thread_state.cache->CachedRunBytes(), 48 * PageBytes());
  // One is enough, and the other stays.
  EXPECT_EQ(ThreadCache::TryGrowRun(runs[0], 25, 28), 28u);
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 24 * PageBytes());
  // Behind what is free.
  EXPECT_EQ(ThreadCache::TryGrowRun(runs[0], 64, 68), 68u);
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 0u);
  EXPECT_EQ(ThreadCache::TryGrowRun(runs[0], 73, 76), 0u);
  // As if another thread kept it. This one keeps another.
  auto* const other = arena.Allocate(24, PageBytes());
  ASSERT_NE(other, nullptr);
  ThreadCache::FreeRun(other);
  runs[3]->state = quarry::Run::kCached;
  EXPECT_EQ(ThreadCache::TryGrowRun(runs[0], 73, 76), 0u);
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 24 * PageBytes());
  runs[3]->state = quarry::Run::kInUse;
  // Nothing is given up where it does not help.
  ThreadCache::FreeRun(runs[3]);
  EXPECT_EQ(ThreadCache::TryGrowRun(runs[0], 97, 98), 0u);
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 48 * PageBytes());
  EXPECT_EQ(ThreadCache::TryGrowRun(runs[0], 73, 76), 76u);
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 24 * PageBytes());
  arena.Deallocate(runs[0]);
  arena.Deallocate(guard);
  ThreadCache::FlushThread();
}

TEST_F(ThreadCacheTest, AnOutgrownBlockIsInItsSlabAtOnce) {
  constexpr size_t kManyBytes = kSmallMaxBytes - 1000;
  void* const p = Allocate(kManyBytes);
  Slab* const slab = Slab::Of(p);
  const size_t used = slab->used();
  ThreadCache::FreeOutgrown(slab, p);
  EXPECT_EQ(slab->used(), used - 1);
  VerifyAll();
  void* const again = Allocate(kManyBytes);
  EXPECT_EQ(again, p);
  // Of a thread that does not own it, as any other.
  OnAnotherThread([&] { ThreadCache::FreeOutgrown(slab, again); });
  ThreadCache::FlushThread();
  EXPECT_EQ(StatisticsOf(ClassOf(kManyBytes)).used_blocks, 0u);
}

// The maintenance thread holds the lock for as long as it is at the slabs.
TEST_F(ThreadCacheTest, RunsDoNotWaitForTheLock) {
  Arena& arena = *thread_state.cache->arena();
  auto* const kept = arena.Allocate(20, PageBytes());
  auto* const run = arena.Allocate(21, PageBytes());
  ASSERT_TRUE(kept != nullptr && run != nullptr);
  ThreadCache::FreeRun(kept);
  ASSERT_EQ(thread_state.cache->CachedRunBytes(), kept->bytes());
  const size_t free_bytes = arena.statistics().free_bytes;
  const size_t run_bytes = run->bytes();
  std::atomic<bool> is_held{false}, is_done{false};
  std::thread holder([&, cache = thread_state.cache] {
    BiasedLockHolder hold(cache->lock());
    is_held = true;
    while (!is_done) std::this_thread::yield();
  });
  while (!is_held) std::this_thread::yield();
  EXPECT_EQ(ThreadCache::TakeRun(kept->bytes()), nullptr);
  EXPECT_FALSE(ThreadCache::TryKeepRun(run->start));
  ThreadCache::FreeRun(run);
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), kept->bytes());
  EXPECT_EQ(arena.statistics().free_bytes, free_bytes + run_bytes);
  is_done = true;
  holder.join();
  EXPECT_EQ(ThreadCache::TakeRun(20 * PageBytes()), kept->start);
  arena.Deallocate(kept);
}

// As where the system has no fence for all threads.
TEST_F(ThreadCacheTest, WithoutABiasAllIsAsWithOne)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  ThreadCache* const cache = thread_state.cache;
  cache->lock().AcquireAndEndBias();
  cache->lock().Release();
  ASSERT_FALSE(cache->lock().TryAcquireByBias());
  auto* const run = cache->arena()->Allocate(20, PageBytes());
  ASSERT_NE(run, nullptr);
  EXPECT_EQ(ThreadCache::TakeRun(20 * PageBytes()), nullptr);
  for (const size_t pages : {20, 18}) {
    ThreadCache::FreeRun(run);
    EXPECT_EQ(ThreadCache::TakeRun(pages * PageBytes()), run->start);
  }
  cache->arena()->Deallocate(run);
  std::vector<void*> blocks;
  for (int i = 0; i < 10'000; ++i) blocks.push_back(Allocate(kBytes));
  for (void* block : blocks) Free(block);
  cache->lock().GiveBias();
}

TEST_F(ThreadCacheTest, IsTidyWhenThereIsNothingToDo) {
  ThreadCache* const cache = thread_state.cache;
  ThreadCache::FlushThread();
  EXPECT_FALSE(cache->IsTidy()) << "it was just used";
  const auto tidy = [&] {
    for (int i = 0; i < 10 && cache->Tidy(false, &gave_back_); ++i) {
    }
    return cache->IsTidy();
  };
  EXPECT_TRUE(tidy());
  auto* const run = cache->arena()->Allocate(20, PageBytes());
  ThreadCache::FreeRun(run);
  EXPECT_FALSE(cache->IsTidy()) << "it has a run";
  EXPECT_TRUE(tidy());
  void* const p = Allocate(kBytes);
  EXPECT_TRUE(tidy());
  // Enough for a remote mark.
  OnAnotherThread([&] { Free(p); });
  EXPECT_FALSE(cache->IsTidy()) << "another thread has freed a block";
  (void)StatisticsOf(ClassOf(kBytes));
  EXPECT_FALSE(cache->IsTidy()) << "nobody has looked at its slab since";
  EXPECT_TRUE(tidy());
}

TEST_F(ThreadCacheTest, ANewSlabGivesAnIdleRunBackFirst) {
  Free(Allocate(kBytes));
  Arena* const arena = thread_state.cache->arena();
  auto* const run = arena->Allocate(20, PageBytes());
  ASSERT_NE(run, nullptr);
  ThreadCache::FreeRun(run);
  const SizeClass c = ClassOf(kSmallMaxBytes);
  std::vector<void*> blocks;
  // The first slab after the run was freed leaves it alone.
  for (size_t i = 0; i < SlabBlocks(c); ++i) blocks.push_back(AllocateOfClass(c));
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 20 * PageBytes());
  for (size_t i = 0; i < SlabBlocks(c); ++i) blocks.push_back(AllocateOfClass(c));
  EXPECT_EQ(thread_state.cache->CachedRunBytes(), 0u);
  for (void* p : blocks) Free(p);
  ThreadCache::FlushThread();
  EXPECT_EQ(arena->statistics().in_use_bytes, 0u) << "the arena has it";
}

class ColdClassDeathTest : public ThreadCacheTest {
 protected:
  ColdClassDeathTest() {
    for (int i = 0; i < 20000; ++i) blocks_.push_back(Allocate(kBytes));
    for (int i = 0; i < 15000; ++i) {
      Free(blocks_.back());
      blocks_.pop_back();
    }
    p_ = blocks_[0];
    q_ = blocks_[500];
    EXPECT_FALSE(TryPush(p_));
  }
  ~ColdClassDeathTest() override {
    for (void* p : blocks_) Free(p);
  }

  std::vector<void*> blocks_;
  void* p_;
  void* q_;
};

TEST_F(ColdClassDeathTest, AFreeRepeatedAtOnceIsFoundAtOnce) {
  EXPECT_EXIT(
      {
        Free(p_);
        Free(p_);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p_)));
}

TEST_F(ColdClassDeathTest, ADoubleFreeIsFoundAtFlush) {
  EXPECT_EXIT(
      {
        Free(p_);
        Free(q_);
        Free(p_);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p_)));
}

TEST_F(ColdClassDeathTest, ADoubleFreeInOneWordIsFoundAtFlush) {
  EXPECT_EXIT(
      {
        Free(p_);
        Free(blocks_[1]);
        Free(p_);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p_)));
}

TEST_F(ColdClassDeathTest, ADoubleFreeIsFoundWhenTheNotesAreFull) {
  EXPECT_EXIT(
      {
        Free(p_);
        for (size_t i = 1; i < 100; ++i) Free(blocks_[i]);
        Free(p_);
        for (size_t i = 100; i < 200; ++i) Free(blocks_[i]);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p_)));
}

// Notes are gathered by words: alone, before and behind a block of the last word.
TEST_F(ColdClassDeathTest, WhatLiesBehindTheLastBlockIsForeign) {
  Slab* const slab = Slab::Of(blocks_[1000]);
  char* const tail = slab->BlockAt(slab->blocks());
  char* const last = slab->BlockAt(slab->blocks() - 1);
  ASSERT_EQ(Slab::Of(tail), slab);
  ASSERT_TRUE(slab->IsGivenOut(last));
  for (const std::vector<void*>& notes :
       {std::vector<void*>{tail}, {tail, last}, {last, tail}, {tail, p_}}) {
    EXPECT_EXIT(
        {
          for (void* p : notes) Free(p);
          thread_state.cache->FlushNotes();
        },
        testing::KilledBySignal(SIGABRT),
        testing::Eq("quarry: free of " + Hex(tail) +
                    ", which Quarry did not allocate, aborting\n"));
  }
}

using ColdClassTest = ColdClassDeathTest;

// The last word of a slab has fewer blocks than bits, and where the next bit's block
// would be, the next slab has one.
TEST_F(ColdClassTest, ANoteOfTheNextSlabIsNotOfTheLastWord) {
  std::set<Slab*> slabs;
  for (void* p : blocks_) slabs.insert(Slab::Of(p));
  Slab* first = nullptr;
  Slab* second = nullptr;
  for (Slab* slab : slabs) {
    Slab* const next = Slab::Of(slab->start() + kGranuleBytes);
    if (slabs.count(next) == 0) continue;
    // The slab that blocks were taken from last is not full.
    if (slab->free_blocks() != 0 || next->free_blocks() != 0) continue;
    first = slab;
    second = next;
  }
  ASSERT_NE(first, nullptr) << "no two slabs touch";
  char* const last = first->BlockAt(first->blocks() - 1);
  char* const next = second->BlockAt(0);
  for (void* p : {static_cast<void*>(last), static_cast<void*>(next)}) {
    const auto at = std::find(blocks_.begin(), blocks_.end(), p);
    ASSERT_NE(at, blocks_.end());
    blocks_.erase(at);
    Free(p);
  }
  thread_state.cache->FlushNotes();
  EXPECT_TRUE(first->IsFree(first->blocks() - 1));
  EXPECT_TRUE(second->IsFree(0));
  EXPECT_EQ(first->used() + second->used(), first->blocks() * 2 - 2);
  VerifyAll();
}

TEST_F(ThreadCacheDeathTest, ADoubleFreeOfALargeBlockIsFoundAtFlush) {
  // Two in a slab, which stays.
  void* const p = Allocate(kSmallMaxBytes / 2);
  void* const q = Allocate(kSmallMaxBytes / 2);
  EXPECT_EXIT(
      {
        Free(p);
        ThreadCache::FlushThread();
        Free(p);
        ThreadCache::FlushThread();
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(DoubleFreeText(p)));
  Free(p);
  Free(q);
}

// The slab is empty in between, and all its blocks are fresh again.
TEST_F(ThreadCacheDeathTest, ADoubleFreeOfAFreshBlockIsFoundWithoutTheFastPath) {
  void* const p = Allocate(kBytes);
  const std::string text = DoubleFreeText(p);
  Free(p);
  ThreadCache::FlushThread();
  EXPECT_EXIT(
      {
        LeaveFastPath();
        QUARRY_CHECK(Allocate(kBytes) == p);
        Free(p);
        Free(p);
      },
      testing::KilledBySignal(SIGABRT), testing::Eq(text));
}

TEST_F(ThreadCacheDeathTest, AnOverwrittenLinkIsFoundAtFlush) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  void* const other_class = Allocate(2 * kBytes);
  char local[kBytes];
  for (uintptr_t garbage :
       {uintptr_t{8}, ~uintptr_t{0}, uintptr_t{0x4141414141414141},
        reinterpret_cast<uintptr_t>(local),
        reinterpret_cast<uintptr_t>(q) + 16,
        reinterpret_cast<uintptr_t>(other_class)}) {
    EXPECT_EXIT(
        {
          Free(q);
          Free(p);
          memcpy(p, &garbage, sizeof(garbage));
          ThreadCache::FlushThread();
        },
        testing::KilledBySignal(SIGABRT), testing::Eq(CorruptLinkText(p)))
        << garbage;
  }
  Free(p);
  Free(q);
  Free(other_class);
}

TEST_F(ThreadCacheDeathTest, ALinkToAnotherThreadsBlockIsFoundAtFlush) {
  void* const p = Allocate(kBytes);
  void* other;
  Worker worker;
  worker.Do([&] { other = Allocate(kBytes); });
  void* orphan;
  OnAnotherThread([&] { orphan = Allocate(kBytes); });
  for (void* target : {other, orphan}) {
    ASSERT_NE(OwnerOf(target), thread_state.cache);
    EXPECT_EXIT(
        {
          Free(p);
          memcpy(p, &target, sizeof(target));
          memset(target, 0, kBytes);
          ThreadCache::FlushThread();
        },
        testing::KilledBySignal(SIGABRT), testing::Eq(CorruptLinkText(p)));
  }
  Free(p);
  Free(other);
  Free(orphan);
}

TEST_F(ThreadCacheDeathTest, NamesTheBlockOfAnInteriorPointer) {
  for (size_t bytes : {kBytes, kSmallMaxBytes}) {
    char* const p = static_cast<char*>(Allocate(bytes));
    EXPECT_EXIT(Free(p + 24), testing::KilledBySignal(SIGABRT),
                testing::Eq("quarry: free of " + Hex(p + 24) +
                            ", which is 24 bytes inside the " +
                            std::to_string(bytes) + "-byte block " + Hex(p) +
                            ", aborting\n"));
    Free(p);
  }
}

TEST_F(ThreadCacheDeathTest, VerifyFindsABlockTwiceInAMagazine) {
  void* const p = Allocate(kBytes);
  void* const q = Allocate(kBytes);
  EXPECT_EXIT(
      {
        Free(p);
        Free(q);
        Free(p);
        thread_state.cache->Verify(true);
      },
      testing::KilledBySignal(SIGABRT), "check failed");
  Free(p);
  Free(q);
}

}  // namespace
}  // namespace quarry
