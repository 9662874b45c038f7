#include "arena/metadata.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/arena/scripted_page_source.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

using Kind = ScriptedPageSource::Kind;

bool IsZero(const void* record, size_t bytes) {
  const char* const p = static_cast<const char*>(record);
  return std::all_of(p, p + bytes, [](char c) { return c == 0; });
}

TEST(MetadataPool, RecordsAreZeroAndAligned) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  for (size_t bytes : {1, 63, 64, 65, 4096, 4097, 70000, 200000, 3000000}) {
    for (int round = 0; round < 2; ++round) {  // Fresh, then reused.
      void* const record = pool.Allocate(bytes);
      ASSERT_NE(record, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(record) % 64, 0u);
      EXPECT_TRUE(IsZero(record, bytes));
      memset(record, 0xab, bytes);
      pool.Deallocate(record, bytes);
    }
  }
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

TEST(MetadataPool, ReusesARecordOfTheSameSizeOnly) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  void* const small = pool.Allocate(100);
  void* const large = pool.Allocate(100000);
  pool.Deallocate(small, 100);
  pool.Deallocate(large, 100000);
  EXPECT_NE(pool.Allocate(64), small);
  EXPECT_EQ(pool.Allocate(128), small);
  EXPECT_NE(pool.Allocate(60000), large);
  EXPECT_EQ(pool.Allocate(100001), large);
}

// Or a small heap's records would be on more pages than they take.
TEST(MetadataPool, SmallRecordsLieBeforeAndAfterALargeOne) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  char* const first = static_cast<char*>(pool.Allocate(128));
  char* const large = static_cast<char*>(pool.Allocate(10000));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large) % PageBytes(), 0u);
  char* last = first;
  for (size_t bytes = 256; bytes <= PageBytes(); bytes += 128) {
    char* const record = static_cast<char*>(pool.Allocate(128));
    EXPECT_EQ(record, last + 128);
    last = record;
  }
  EXPECT_EQ(last + 128, large);
  EXPECT_GT(static_cast<char*>(pool.Allocate(128)), large);
}

TEST(MetadataPool, SmallRecordsUseUpAChunkThatIsLeftForALargerOne) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  char* const first = static_cast<char*>(pool.Allocate(128));
  ASSERT_NE(pool.Allocate(4 << 20), nullptr);
  const size_t maps = source.CountOf(Kind::kMap);
  ASSERT_TRUE(pool.Reserve(2 << 20, 2 << 20));
  EXPECT_EQ(pool.Allocate(128), first + 128);
  EXPECT_EQ(source.CountOf(Kind::kMap), maps + 1);
}

TEST(MetadataPool, WhatIsReservedIsThereWhenTheSourceHasNoMore) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  EXPECT_NE(pool.Allocate(64), nullptr);
  ASSERT_TRUE(pool.Reserve(1 << 19, 1 << 19));
  EXPECT_TRUE(pool.Reserve(1 << 18, 1 << 18)) << "that much is there";
  source.RefuseKind(Kind::kMap);
  EXPECT_FALSE(pool.Reserve(1 << 20, 1 << 20));
  ASSERT_NE(pool.Allocate(1 << 19), nullptr);
  for (int i = 0; i < (1 << 19) / 512; ++i) {
    ASSERT_NE(pool.Allocate(512), nullptr) << i;
  }
}

// As where segments of many runs come and go, and a thread begins in between.
TEST(MetadataPool, ReservingAgainAndAgainLosesNoChunk) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  constexpr size_t kSegment = 1200 << 10, kRuns = 500 << 10, kCache = 40 << 10;
  size_t mapped_bytes = 0;
  for (int round = 0; round < 400; ++round) {
    if (round == 200) mapped_bytes = pool.mapped_bytes();
    ASSERT_TRUE(pool.Reserve(kSegment, kRuns));
    void* const segment = pool.Allocate(kSegment);
    ASSERT_NE(segment, nullptr);
    pool.Deallocate(segment, kSegment);
    ASSERT_NE(pool.Allocate(kCache), nullptr);
  }
  // A chunk's rest may be too small for one more cache.
  EXPECT_LE(pool.mapped_bytes() - mapped_bytes, 200 * (kCache + kCache / 8) + (4 << 20));
}

TEST(MetadataPool, ALargeRecordTakesWhatWasLeftForALargerOne) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  char* const first = static_cast<char*>(pool.Allocate(128));
  ASSERT_NE(pool.Allocate(4 << 20), nullptr);
  ASSERT_TRUE(pool.Reserve(2 << 20, 2 << 20));
  source.RefuseKind(Kind::kMap);
  char* const large = static_cast<char*>(pool.Allocate(100000));
  EXPECT_GT(large, first);
  EXPECT_LT(large, first + (256 << 10));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large) % PageBytes(), 0u);
  EXPECT_TRUE(IsZero(large, 100000));
  ASSERT_NE(pool.Allocate(2 << 20), nullptr) << "reserved, and not touched";
}

TEST(MetadataPool, ALargeFreedRecordIsPurgedAtOnce) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  void* const record = pool.Allocate(100000);
  memset(record, 1, 100000);
  source.ForgetCalls();
  pool.Deallocate(record, 100000);
  EXPECT_EQ(source.CountOf(Kind::kPurge), 1u);
  EXPECT_EQ(pool.Allocate(100000), record);
  EXPECT_TRUE(IsZero(record, 100000));
}

TEST(MetadataPool, IsZeroAlsoWhenTheSourceCannotPurge) {
  ScriptedPageSource source;
  source.RefuseKind(Kind::kPurge);
  MetadataPool pool(source);
  void* const record = pool.Allocate(100000);
  memset(record, 1, 100000);
  pool.Deallocate(record, 100000);
  EXPECT_EQ(pool.Allocate(100000), record);
  EXPECT_TRUE(IsZero(record, 100000));
}

TEST(MetadataPool, ChunksGrowAndHaveGuards) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  while (source.CountOf(Kind::kMap) < 4) {
    ASSERT_NE(pool.Allocate(4096), nullptr);
  }
  const size_t guards = 2 * PageBytes();
  std::vector<size_t> chunks;
  for (const auto& call : source.calls()) {
    if (call.kind == Kind::kMap) chunks.push_back(call.bytes - guards);
  }
  EXPECT_EQ(chunks,
            (std::vector<size_t>{256 << 10, 512 << 10, 1 << 20, 1 << 20}));
  EXPECT_EQ(source.CountOf(Kind::kGuard), 2 * chunks.size());
  EXPECT_EQ(pool.mapped_bytes(), source.statistics().mapped_bytes);
}

// Whether the kernel notes of the mapping that holds `p` that it is never to
// lie on huge pages.
bool KeepsSmallPages(const void* p) {
  std::ifstream maps("/proc/self/smaps");
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  bool found = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t first, end;
    if (sscanf(line.c_str(), "%lx-%lx ", &first, &end) == 2) {
      found = first <= address && address < end;
    } else if (found && line.rfind("VmFlags:", 0) == 0) {
      return line.find(" nh") != std::string::npos;
    }
  }
  return false;
}

TEST(MetadataPool, IsNeverOnHugePages) {
  OsPageSource source;
  MetadataPool pool(source);
  if (access("/sys/kernel/mm/transparent_hugepage", F_OK) != 0) {
    GTEST_SKIP() << "this kernel has no huge pages";
  }
  for (const size_t bytes : {size_t{64}, size_t{8} << 20}) {
    char* const record = static_cast<char*>(pool.Allocate(bytes));
    EXPECT_TRUE(KeepsSmallPages(record));
    EXPECT_TRUE(KeepsSmallPages(record + bytes - 1));
  }
}

TEST(MetadataPool, ARecordLargerThanAnyChunkDoesNotEndTheChunkInUse) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  char* const first = static_cast<char*>(pool.Allocate(64));
  ASSERT_NE(pool.Allocate(8 << 20), nullptr);
  EXPECT_EQ(pool.Allocate(64), first + 64);
}

TEST(MetadataPool, RefusesWhatTheSourceRefuses) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  source.RefuseKind(Kind::kMap);
  EXPECT_EQ(pool.Allocate(64), nullptr);
  EXPECT_EQ(pool.in_use_bytes(), 0u);
  EXPECT_EQ(pool.mapped_bytes(), 0u);
  source.RefuseNothing();
  EXPECT_NE(pool.Allocate(64), nullptr);
}

TEST(MetadataPool, TakesASmallerChunkWhenTheSourceRefusesALargeOne) {
  ScriptedPageSource source;
  MetadataPool pool(source);
  source.RefuseMapsAbove(5 * PageBytes());
  void* const record = pool.Allocate(64);
  ASSERT_NE(record, nullptr);
  EXPECT_LE(pool.mapped_bytes(), 5 * PageBytes());
}

TEST(MetadataPool, RandomRecordsNeverOverlap) {
  std::mt19937_64 random(TestSeed());
  ScriptedPageSource source;
  MetadataPool pool(source);
  struct Record {
    size_t bytes;
    char stamp;
  };
  std::map<char*, Record> live;
  size_t live_bytes = 0;
  for (int step = 0; step < 20000; ++step) {
    if (live.empty() || random() % 5 < 3) {
      const size_t bytes = 1 + random() % (random() % 50 == 0 ? 300000 : 6000);
      char* const start = static_cast<char*>(pool.Allocate(bytes));
      ASSERT_NE(start, nullptr);
      ASSERT_TRUE(IsZero(start, bytes));
      const auto after = live.lower_bound(start);
      ASSERT_TRUE(after == live.end() || start + bytes <= after->first);
      if (after != live.begin()) {
        const auto before = std::prev(after);
        ASSERT_LE(before->first + before->second.bytes, start);
      }
      const char stamp = static_cast<char>(1 + random() % 100);
      memset(start, stamp, bytes);
      live[start] = {bytes, stamp};
      live_bytes += bytes;
    } else {
      auto record = live.begin();
      std::advance(record, random() % std::min<size_t>(live.size(), 30));
      const auto [start, content] = *record;
      ASSERT_TRUE(std::all_of(start, start + content.bytes,
                              [&](char c) { return c == content.stamp; }));
      pool.Deallocate(start, content.bytes);
      live_bytes -= content.bytes;
      live.erase(record);
    }
    ASSERT_GE(pool.in_use_bytes(), live_bytes);
    ASSERT_GE(pool.mapped_bytes(), pool.in_use_bytes());
    if (live.size() > 2000) {
      for (auto& [start, content] : live) pool.Deallocate(start, content.bytes);
      live.clear();
      live_bytes = 0;
      ASSERT_EQ(pool.in_use_bytes(), 0u);
    }
  }
}

TEST(MetadataPool, ServesManyThreads) {
  OsPageSource source;
  MetadataPool pool(source);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 2000; ++i) {
        const size_t bytes = 64 * (1 + (i * 7 + t) % 20);
        void* const record = pool.Allocate(bytes);
        memset(record, t, bytes);
        pool.Deallocate(record, bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool.in_use_bytes(), 0u);
}

}  // namespace
}  // namespace quarry
