#include "tcache/cache_registry.h"

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "arena/numa.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/thread_life.h"
#include "tests/arena/in_child.h"
#include "tests/tcache/blocks.h"
#include "tests/tcache/several_arenas.h"

namespace quarry {
namespace {

std::set<ThreadCache*> AllCaches() {
  std::set<ThreadCache*> all;
  cache_registry.ForEach([&](ThreadCache* cache) { all.insert(cache); });
  return all;
}

TEST(CacheRegistry, EachCacheHasATagOfItsOwn) {
  std::vector<ThreadCache*> caches;
  std::set<Tag> tags;
  const size_t open = OpenCaches();
  for (size_t i = 0; i < 100; ++i) {
    ThreadCache* const cache = cache_registry.Take();
    ASSERT_NE(cache, nullptr);
    caches.push_back(cache);
    EXPECT_TRUE(cache->is_open);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(cache) % 64, 0u);
    EXPECT_EQ(cache->tag() % kOwnerUnit, 0u);
    EXPECT_NE(cache->tag(), 0u);
    EXPECT_LT(cache->tag(), kNobody);
    EXPECT_TRUE(tags.insert(cache->tag()).second);
    EXPECT_EQ(OpenCaches(), open + i + 1);
  }
  for (ThreadCache* cache : caches) cache_registry.Give(cache);
  EXPECT_EQ(OpenCaches(), open);
}

TEST(CacheRegistry, ANewTagIsNobodys) {
  const Tag tag = cache_registry.NewTag();
  EXPECT_NE(tag, kNoTag);
  EXPECT_EQ(tag % kOwnerUnit, 0u);
  EXPECT_NE(cache_registry.NewTag(), tag);
  for (ThreadCache* cache : AllCaches()) EXPECT_NE(cache->tag(), tag);
}

TEST(CacheRegistry, AClosedCacheServesTheNextOwnerUnderItsTag) {
  ThreadCache* const cache = cache_registry.Take();
  const Tag tag = cache->tag();
  cache_registry.Give(cache);
  EXPECT_FALSE(cache->is_open);
  const size_t caches = AllCaches().size();
  EXPECT_EQ(cache_registry.Take(), cache);
  EXPECT_TRUE(cache->is_open);
  EXPECT_EQ(cache->tag(), tag);
  EXPECT_EQ(AllCaches().size(), caches);
  cache_registry.Give(cache);
}

TEST(CacheRegistry, AStackIsOpenAsLongAsItsCacheIs) {
  ThreadCache* const cache = cache_registry.Take();
  EXPECT_TRUE(cache->pending().IsEmpty());
  cache_registry.Give(cache);
  EXPECT_FALSE(cache->pending().IsEmpty());
  ASSERT_EQ(cache_registry.Take(), cache);
  EXPECT_TRUE(cache->pending().IsEmpty());
  cache_registry.Give(cache);
}

TEST(CacheRegistry, ListsClosedCachesToo) {
  ThreadCache* const open = cache_registry.Take();
  ThreadCache* const closed = cache_registry.Take();
  cache_registry.Give(closed);
  const std::set<ThreadCache*> all = AllCaches();
  EXPECT_EQ(all.count(open), 1u);
  EXPECT_EQ(all.count(closed), 1u);
  cache_registry.Give(open);
}

TEST(CacheRegistry, AVisitGoesOnWhereTheLastOneStopped) {
  ThreadCache* const taken[] = {cache_registry.Take(), cache_registry.Take(),
                                cache_registry.Take()};
  std::vector<ThreadCache*> at_once;
  cache_registry.ForEachUnlocked([&](ThreadCache* cache) { at_once.push_back(cache); });
  ASSERT_GE(at_once.size(), std::size(taken));
  std::vector<ThreadCache*> by_twos;
  ThreadCache* next = nullptr;
  do {
    size_t left = 2;
    next = cache_registry.VisitWhile(next, [&](ThreadCache* cache) {
      by_twos.push_back(cache);
      return --left != 0;
    });
  } while (next != nullptr);
  EXPECT_EQ(by_twos, at_once);
  for (ThreadCache* cache : taken) cache_registry.Give(cache);
}

TEST(CacheRegistry, SpreadsCachesOverTheArenas) {
  const OnOneNode on_one_node;
  std::vector<ThreadCache*> caches;
  std::set<Arena*> arenas;
  for (size_t i = 0; i < ArenaCount(); ++i) {
    caches.push_back(cache_registry.Take());
    arenas.insert(caches.back()->arena());
  }
  EXPECT_EQ(arenas.size(), ArenaCount());
  for (ThreadCache* cache : caches) cache_registry.Give(cache);
}

// It is made once for all threads, and stays.
TEST(CacheRegistry, TheCacheOfThoseWithoutOneIsNoThreadOfItsArena) {
  const OnOneNode on_one_node;
  Free(Allocate(64));
  ASSERT_NE(StrayCache(), nullptr);
  ThreadCache* const first = cache_registry.Take();
  ThreadCache* const second = cache_registry.Take();
  EXPECT_EQ((std::set<Arena*>{thread_state.cache->arena(), first->arena(),
                              second->arena()})
                .size(),
            3u);
  cache_registry.Give(first);
  cache_registry.Give(second);
}

TEST(CacheRegistry, AThreadThatFollowsAnotherAllocatesWhereThatDid) {
  const OnOneNode on_one_node;
  std::vector<ThreadCache*> caches;
  for (size_t i = 0; i < 3 * ArenaCount(); ++i) {
    caches.push_back(cache_registry.Take());
  }
  for (ThreadCache*& cache : caches) {
    Arena* const arena = cache->arena();
    cache_registry.Give(cache);
    cache = cache_registry.Take();
    EXPECT_EQ(cache->arena(), arena);
  }
  for (ThreadCache* cache : caches) cache_registry.Give(cache);
}

TEST(CacheRegistry, NoTwoOfManyThreadsHaveOneCache) {
  constexpr size_t kThreads = 4;
  constexpr int kRounds = 2000;
  const size_t open = OpenCaches();
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([] {
      for (int round = 0; round < kRounds; ++round) {
        ThreadCache* const first = cache_registry.Take();
        ThreadCache* const second = cache_registry.Take();
        // A second owner would find these written by the first: a data race.
        for (ThreadCache* cache : {first, second}) {
          EXPECT_TRUE(cache->is_open);
          EXPECT_EQ(cache->MagazineBlocks(kFirstClass), 0u);
        }
        EXPECT_NE(first, second);
        cache_registry.Give(first);
        cache_registry.Give(second);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(OpenCaches(), open);
  VerifyAll();
}

// --- Parked caches. ---

constexpr size_t kBytes = 112;

class ParkedCacheTest : public testing::Test {
 protected:
  ParkedCacheTest() {
    (void)cache_registry.CloseParked(/*all=*/true);
    settings.parked_caches = 2;
    Free(Allocate(kBytes));
    ThreadCache::FlushThread();
  }
  ~ParkedCacheTest() override {
    settings.parked_caches = 0;
    EXPECT_FALSE(cache_registry.CloseParked(/*all=*/true));
    ThreadCache::FlushThread();
    EXPECT_EQ(SlabBytesInUse(), 0u);
    EXPECT_EQ(CountOrphans(), 0u);
    VerifyAll();
  }

  static size_t CountParked() {
    size_t count = 0;
    cache_registry.ForEach(
        [&](ThreadCache* cache) { count += cache->is_parked(); });
    return count;
  }

  // A block of a cache that is parked, and one of a cache that was parked later.
  void ParkTwo(void** first, void** second) {
    Worker worker;
    worker.Do([&] { *first = Allocate(kBytes); });
    Worker other;
    other.Do([&] { *second = Allocate(kBytes); });
    worker.End();
    other.End();
    ASSERT_TRUE(OwnerOf(*first)->is_parked());
    ASSERT_TRUE(OwnerOf(*second)->is_parked());
    ASSERT_NE(OwnerOf(*first), OwnerOf(*second));
  }

  // The cache of a thread that allocates a block and ends.
  ThreadCache* CacheOfOneThread() {
    ThreadCache* cache = nullptr;
    OnAnotherThread([&] {
      void* const p = Allocate(kBytes);
      cache = thread_state.cache;
      last_freed_ = p;
      Free(p);
    });
    return cache;
  }

  void* last_freed_ = nullptr;
};

TEST_F(ParkedCacheTest, TheNextThreadGetsTheCacheAsItWas) {
  const size_t open = OpenCaches();
  ThreadCache* const cache = CacheOfOneThread();
  EXPECT_TRUE(cache->is_parked());
  EXPECT_EQ(OpenCaches(), open);
  const uint64_t slabs = cache->counters().slabs_made;
  OnAnotherThread([&] {
    EXPECT_EQ(Allocate(kBytes), last_freed_);
    EXPECT_EQ(thread_state.cache, cache);
    EXPECT_EQ(thread_state.tag, cache->tag());
    EXPECT_FALSE(cache->is_parked());
    EXPECT_EQ(OpenCaches(), open + 1);
    Free(last_freed_);
  });
  EXPECT_EQ(cache->counters().slabs_made, slabs);
}

TEST_F(ParkedCacheTest, WhoFreesABlockOfOneGetsIt) {
  void* p = nullptr;
  void* last = nullptr;
  ParkTwo(&p, &last);
  ThreadCache* const cache = OwnerOf(p);
  const size_t open = OpenCaches();
  const size_t kept = cache->MagazineBlocks(ClassOf(kBytes));
  OnAnotherThread([&] {
    FreeLater(p);
    EXPECT_EQ(thread_state.cache, cache) << "though the other was the last";
    EXPECT_EQ(thread_state.tag, cache->tag());
    EXPECT_FALSE(cache->is_parked());
    EXPECT_EQ(OpenCaches(), open + 1);
    EXPECT_EQ(cache->MagazineBlocks(ClassOf(kBytes)), kept + 1);
    EXPECT_EQ(Allocate(kBytes), p) << "freed locally";
    Free(p);
    // The other cache is that of another thread to it.
    FreeLater(last);
    EXPECT_EQ(thread_state.cache, cache);
    EXPECT_TRUE(OwnerOf(last)->is_parked());
  });
  EXPECT_EQ(CountParked(), 2u);
}

TEST_F(ParkedCacheTest, WhoFreesABlockOfOneOfAnotherNodeDoesNot) {
  numa.Substitute(2, [] { return size_t{0}; });
  void* p = nullptr;
  OnAnotherThread([&] { p = Allocate(kBytes); });
  ThreadCache* const cache = OwnerOf(p);
  ASSERT_TRUE(cache->is_parked());
  const bool is_of_first = cache->arena()->index() % 2 == 0;
  numa.Substitute(2, is_of_first ? +[] { return size_t{1}; }
                                 : +[] { return size_t{0}; });
  OnAnotherThread([&] {
    FreeLater(p);
    EXPECT_EQ(thread_state.cache, &no_cache);
  });
  EXPECT_TRUE(cache->is_parked());
  EXPECT_TRUE(Slab::Of(p)->remote.IsMarked(Slab::Of(p)->IndexOf(p)));
  numa.Substitute(0, nullptr);
}

TEST_F(ParkedCacheTest, WhoHasGivenItsOwnUpGetsNone) {
  void* p = nullptr;
  void* q = nullptr;
  ParkTwo(&p, &q);
  OnAnotherThread([&] {
    FreeLater(p);
    EndThread();
    FreeLater(q);
    EXPECT_EQ(thread_state.cache, &no_cache);
  });
  EXPECT_EQ(CountParked(), 2u);
  EXPECT_TRUE(Slab::Of(q)->remote.IsMarked(Slab::Of(q)->IndexOf(q)));
}

TEST_F(ParkedCacheTest, OnlySoManyWait) {
  {
    Worker workers[3];
    for (Worker& worker : workers) {
      worker.Do([] { Free(Allocate(kBytes)); });
    }
  }
  EXPECT_EQ(CountParked(), 2u);
  settings.parked_caches = 0;
  OnAnotherThread([] { Free(Allocate(kBytes)); });
  EXPECT_EQ(CountParked(), 1u);
}

TEST_F(ParkedCacheTest, OneThatHoldsMuchIsClosed) {
  OnAnotherThread([] {
    // A depot holds so much of each of several sizes.
    std::vector<void*> blocks;
    for (const size_t block_bytes : {64, 112, 256, 512}) {
      for (size_t bytes = 0; bytes < ThreadCache::kMostRestingBytes / 2;
           bytes += block_bytes) {
        blocks.push_back(Allocate(block_bytes));
      }
    }
    for (void* p : blocks) Free(p);
  });
  EXPECT_EQ(CountParked(), 0u);
}

// What is in its slabs counts, though not what was never touched.
TEST_F(ParkedCacheTest, OneWithHollowSlabsIsClosed) {
  std::vector<void*> left;
  OnAnotherThread([&] {
    std::vector<void*> blocks;
    for (int i = 0; i < 40; ++i) {
      for (size_t bytes = 0; bytes < kGranuleBytes; bytes += kBytes) {
        blocks.push_back(Allocate(kBytes));
      }
      left.push_back(blocks.back());
      blocks.pop_back();
    }
    for (void* p : blocks) Free(p);
    ThreadCache::FlushThread();
  });
  EXPECT_EQ(CountParked(), 0u);
  for (void* p : left) Free(p);
}

TEST_F(ParkedCacheTest, RemoteFreesWaitForTheNextThread) {
  void* p = nullptr;
  OnAnotherThread([&] { p = Allocate(kBytes); });
  ThreadCache* const cache = OwnerOf(p);
  ASSERT_TRUE(cache->is_parked());
  Free(p);
  EXPECT_FALSE(cache->pending().IsEmpty());
  OnAnotherThread([&] {
    ThreadCache::FlushThread();  // Of a thread without a cache.
    Free(Allocate(kBytes));
    ThreadCache::FlushThread();
  });
  EXPECT_TRUE(cache->pending().IsEmpty());
}

TEST_F(ParkedCacheTest, RemoteFreesAreTidiedUp) {
  void* p = nullptr;
  OnAnotherThread([&] { p = Allocate(kBytes); });
  ThreadCache* const cache = OwnerOf(p);
  Free(p);
  bool gave_back = false;
  (void)cache->Tidy(/*is_urgent=*/false, &gave_back);
  EXPECT_TRUE(cache->pending().IsEmpty());
  EXPECT_TRUE(cache->is_parked());
}

TEST_F(ParkedCacheTest, IsClosedAfterSomeLooks) {
  void* p = nullptr;
  OnAnotherThread([&] { p = Allocate(kBytes); });
  ThreadCache* const cache = OwnerOf(p);
  for (int look = 0; look < 4; ++look) {
    EXPECT_TRUE(cache_registry.CloseParked(/*all=*/false));
    EXPECT_TRUE(cache->is_parked());
  }
  EXPECT_FALSE(cache_registry.CloseParked(/*all=*/false));
  EXPECT_FALSE(cache->is_parked());
  EXPECT_FALSE(cache->is_open);
  EXPECT_TRUE(IsOrphan(Slab::Of(p)));
  Free(p);
}

TEST_F(ParkedCacheTest, AThreadThatCameInBetweenBeginsAnew) {
  ThreadCache* const cache = CacheOfOneThread();
  for (int look = 0; look < 4; ++look) {
    EXPECT_TRUE(cache_registry.CloseParked(/*all=*/false));
  }
  EXPECT_EQ(CacheOfOneThread(), cache);
  EXPECT_TRUE(cache_registry.CloseParked(/*all=*/false));
}

TEST_F(ParkedCacheTest, NoneWhileBlocksArePerturbed) {
  void* p = nullptr;
  OnAnotherThread([&] { p = Allocate(kBytes); });
  ThreadCache* const cache = OwnerOf(p);
  ASSERT_TRUE(cache->is_parked());
  settings.perturb_byte = 1;
  ThreadCache* const other = CacheOfOneThread();
  OnAnotherThread([&] {
    FreeLater(p);
    EXPECT_EQ(thread_state.cache, &no_cache);
  });
  settings.perturb_byte = 0;
  EXPECT_NE(other, cache);
  EXPECT_FALSE(other->is_parked());
  EXPECT_TRUE(cache->is_parked());
}

TEST_F(ParkedCacheTest, AThreadGetsOneOfItsNode) {
  constexpr auto kFirst = [] { return size_t{0}; };
  constexpr auto kSecond = [] { return size_t{1}; };
  numa.Substitute(2, kFirst);
  ThreadCache* const first = CacheOfOneThread();
  const bool is_of_first = first->arena()->index() % 2 == 0;
  numa.Substitute(2, is_of_first ? +kSecond : +kFirst);
  ThreadCache* const second = CacheOfOneThread();
  EXPECT_NE(second, first);
  numa.Substitute(2, is_of_first ? +kFirst : +kSecond);
  EXPECT_EQ(CacheOfOneThread(), first) << "though the other was the last";
  numa.Substitute(0, nullptr);
}

// With those of threads that are gone, and none of them is given to another thread.
TEST_F(ParkedCacheTest, AForksChildKeepsItToCloseIt) {
  if (kUnderTsan) GTEST_SKIP() << "it lets no forked child have threads";
  void* p = nullptr;
  OnAnotherThread([&] { p = Allocate(kBytes); });
  void* q = nullptr;
  Worker worker;
  worker.Do([&] { q = Allocate(kBytes); });
  ThreadCache* const owner = OwnerOf(q);
  EXPECT_EQ(InChild([&] {
              QUARRY_CHECK(CountParked() == 0);
              QUARRY_CHECK(owner->is_bereft && OwnerOf(q) == owner);
              VerifyAll();
              OnAnotherThread([&] {
                FreeLater(q);
                QUARRY_CHECK(TakeCacheOver(owner) == nullptr);
                Free(Allocate(kBytes));
                QUARRY_CHECK(thread_state.cache != owner);
              });
              QUARRY_CHECK(CountParked() == 1);
              QUARRY_CHECK(cache_registry.CloseParked(true, 1));
              QUARRY_CHECK(CountParked() == 0 && owner->is_open);
              QUARRY_CHECK(!cache_registry.CloseParked(true));
              QUARRY_CHECK(CountParked() == 0 && !owner->is_open);
              VerifyAll();
              OnAnotherThread([&] {
                Free(Allocate(kBytes));
                QUARRY_CHECK(!thread_state.cache->is_bereft);
              });
              QUARRY_CHECK(CountParked() == 1);
              Free(p);
            }),
            0);
  worker.Do([&] { Free(q); });
  worker.End();
  EXPECT_EQ(CountParked(), 1u);
  Free(p);
}

// Threads come and go while others close what they left.
TEST_F(ParkedCacheTest, NoBlockIsLostWhileThreadsRace) {
  std::atomic<bool> stop{false};
  std::thread closer([&] {
    for (bool all = false; !stop.load(std::memory_order_relaxed); all = !all) {
      (void)cache_registry.CloseParked(all);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> lines;
  for (int line = 0; line < 3; ++line) {
    lines.emplace_back([] {
      void* left[8] = {};
      for (int life = 0; life < 300; ++life) {
        OnAnotherThread([&] {
          for (void*& p : left) {
            // The first gets the thread a cache, if that is still parked.
            if (p != nullptr) FreeHereOrLater(p);
            p = Allocate(kBytes);
            Free(Allocate(2 * kBytes));
          }
        });
      }
      for (void* p : left) FreeHereOrLater(p);
    });
  }
  for (std::thread& line : lines) line.join();
  stop = true;
  closer.join();
}

}  // namespace
}  // namespace quarry
