#include "arena/process_arenas.h"

#include <set>
#include <thread>
#include <vector>

#include "arena/arena.h"
#include "arena/numa.h"
#include "arena/settings.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

// What comes first, before another test makes them all.
TEST(ProcessArenas, AreMadeWhenTheyAreGot) {
  EXPECT_EQ(ArenasMade(), 0u);
  numa.Substitute(1, [] { return size_t{0}; });
  EXPECT_EQ(&NextArena(), &ArenaAt(0));
  numa.Substitute(0, nullptr);
  EXPECT_EQ(ArenasMade(), 1u);
  ArenaAt(4);
  EXPECT_EQ(ArenasMade(), 5u);
  ArenaAt(1);
  EXPECT_EQ(ArenasMade(), 5u);
}

// Many threads that make the same arenas make each of them once.
TEST(ProcessArenas, AreMadeOnce) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 8; ++i) {
    threads.emplace_back([i] {
      for (size_t at = 5; at < 20; ++at) {
        EXPECT_EQ(ArenaAt((at + i) % 20).index(), (at + i) % 20);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ArenasMade(), 20u);
}

TEST(ProcessArenas, EachKnowsItsIndex) {
  for (size_t i = 0; i < kMaxArenas; ++i) {
    EXPECT_EQ(ArenaAt(i).index(), i);
    EXPECT_EQ(ArenaAt(i).statistics(), Arena::Statistics());
  }
}

TEST(ProcessArenas, AreHandedOutInTurn) {
  settings.arenas_max = 3;
  EXPECT_EQ(ArenaCount(), 3u);
  settings.arenas_max = 5;
  EXPECT_EQ(ArenaCount(), 3u) << "fixed at the first call";
  std::set<Arena*> seen;
  for (int i = 0; i < 9; ++i) seen.insert(&NextArena());
  EXPECT_EQ(seen, (std::set<Arena*>{&ArenaAt(0), &ArenaAt(1), &ArenaAt(2)}));
}

std::set<Arena*> ArenasOfNode(size_t (*node)()) {
  numa.Substitute(2, node);
  std::set<Arena*> seen;
  for (int i = 0; i < 9; ++i) seen.insert(&NextArena());
  numa.Substitute(0, nullptr);
  return seen;
}

TEST(ProcessArenas, AreDealtToNodesInTurn) {
  settings.arenas_max = 3;
  ASSERT_EQ(ArenaCount(), 3u);
  EXPECT_EQ(ArenasOfNode([] { return size_t{0}; }),
            (std::set<Arena*>{&ArenaAt(0), &ArenaAt(2)}));
  EXPECT_EQ(ArenasOfNode([] { return size_t{1}; }),
            (std::set<Arena*>{&ArenaAt(1)}));
}

TEST(ProcessArenas, ANodeWithoutAnArenaSharesAll) {
  settings.arenas_max = 3;
  ASSERT_EQ(ArenaCount(), 3u);
  numa.Substitute(8, [] { return size_t{5}; });
  std::set<Arena*> seen;
  for (int i = 0; i < 9; ++i) seen.insert(&NextArena());
  numa.Substitute(0, nullptr);
  EXPECT_EQ(seen.size(), 3u);
}

TEST(ProcessArenas, Serve) {
  quarry::Run* const run = ArenaAt(0).Allocate(16, 65536);
  ASSERT_NE(run, nullptr);
  EXPECT_GT(metadata_pool.in_use_bytes(), 0u);
  ArenaAt(0).Deallocate(run);
  Huge* const huge = huge_blocks.Allocate(1 << 20, 1);
  ASSERT_NE(huge, nullptr);
  huge_blocks.Deallocate(huge);
  huge_blocks.Purge();
  ArenaAt(0).Purge(0);
}

}  // namespace
}  // namespace quarry
