#include "tcache/cache_registry.h"

#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/tcache/blocks.h"

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
  const size_t open = cache_registry.OpenCaches();
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
    EXPECT_EQ(cache_registry.OpenCaches(), open + i + 1);
  }
  for (ThreadCache* cache : caches) cache_registry.Give(cache);
  EXPECT_EQ(cache_registry.OpenCaches(), open);
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

TEST(CacheRegistry, SpreadsCachesOverTheArenas) {
  std::vector<ThreadCache*> caches;
  std::set<Arena*> arenas;
  for (size_t i = 0; i < ArenaCount(); ++i) {
    caches.push_back(cache_registry.Take());
    arenas.insert(caches.back()->arena());
  }
  EXPECT_EQ(arenas.size(), ArenaCount());
  for (ThreadCache* cache : caches) cache_registry.Give(cache);
}

TEST(CacheRegistry, NoTwoOfManyThreadsHaveOneCache) {
  constexpr size_t kThreads = 4;
  constexpr int kRounds = 2000;
  const size_t open = cache_registry.OpenCaches();
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
  EXPECT_EQ(cache_registry.OpenCaches(), open);
  VerifyAll();
}

}  // namespace
}  // namespace quarry
