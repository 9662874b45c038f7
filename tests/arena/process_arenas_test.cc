#include "arena/process_arenas.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <vector>

#include "arena/arena.h"
#include "arena/numa.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/arena/in_child.h"

namespace quarry {
namespace {

// What comes first, before another test makes them all.
TEST(ProcessArenas, AreMadeWhenTheyAreGot) {
  EXPECT_EQ(ArenasMade(), 0u);
  numa.Substitute(1, [] { return size_t{0}; });
  EXPECT_EQ(&JoinArena(), &ArenaAt(0));
  LeaveArena(ArenaAt(0));
  numa.Substitute(0, nullptr);
  EXPECT_EQ(ArenasMade(), 1u);
  ArenaAt(4);
  EXPECT_EQ(ArenasMade(), 5u);
  ArenaAt(1);
  EXPECT_EQ(ArenasMade(), 5u);
}

// Many threads that make the same arenas make each of them once. Before a test
// makes more.
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

// The indices of the arenas that as many threads join.
std::vector<size_t> Join(size_t threads) {
  std::vector<size_t> joined;
  while (joined.size() < threads) joined.push_back(JoinArena().index());
  return joined;
}

void Leave(const std::vector<size_t>& joined) {
  for (size_t index : joined) LeaveArena(ArenaAt(index));
}

std::vector<size_t> JoinOnNode(size_t nodes, size_t (*node)(), size_t threads) {
  numa.Substitute(nodes, node);
  const std::vector<size_t> joined = Join(threads);
  numa.Substitute(0, nullptr);
  Leave(joined);
  return joined;
}

// Programs give each of their threads a processor of its own.
TEST(ProcessArenas, AThreadWithOneProcessorDoesNotMakeThemFew) {
  EXPECT_EQ(InChild([] {
              cpu_set_t all;
              if (sched_getaffinity(0, sizeof(all), &all) != 0) return;
              Leave(Join(1));
              int first = 0;
              while (!CPU_ISSET(first, &all)) ++first;
              cpu_set_t one;
              CPU_ZERO(&one);
              CPU_SET(first, &one);
              if (sched_setaffinity(0, sizeof(one), &one) != 0) return;
              if (ArenaCount() != std::min(static_cast<size_t>(CPU_COUNT(&all)), kMaxArenas)) abort();
            }),
            0);
}

class JoiningTest : public testing::Test {
 protected:
  JoiningTest() {
    settings.arenas_max = 3;
    numa.Substitute(1, [] { return size_t{0}; });
    EXPECT_EQ(ArenaCount(), 3u);
  }
  ~JoiningTest() override { numa.Substitute(0, nullptr); }
};

TEST_F(JoiningTest, TheCountIsFixedAtTheFirstCall) {
  settings.arenas_max = 5;
  EXPECT_EQ(ArenaCount(), 3u);
}

TEST_F(JoiningTest, ThreadsAreSpreadEvenly) {
  const std::vector<size_t> joined = Join(7);
  EXPECT_EQ(joined, (std::vector<size_t>{0, 1, 2, 0, 1, 2, 0}));
  Leave(joined);
}

// What threads that are gone have left is taken up before more is touched.
TEST_F(JoiningTest, AThreadTakesThePlaceOfOneThatLeft) {
  const std::vector<size_t> joined = Join(6);
  for (size_t left : {1, 2, 0, 1}) {
    LeaveArena(ArenaAt(left));
    EXPECT_EQ(JoinArena().index(), left);
  }
  LeaveArena(ArenaAt(2));
  LeaveArena(ArenaAt(2));
  EXPECT_EQ(Join(3), (std::vector<size_t>{2, 2, 0}));
  Leave(joined);
  LeaveArena(ArenaAt(0));
}

TEST_F(JoiningTest, OneThreadAfterTheOtherHasOneArena) {
  const std::vector<size_t> main_thread = Join(1);
  for (int i = 0; i < 9; ++i) {
    Arena& arena = JoinArena();
    EXPECT_EQ(arena.index(), 1u);
    LeaveArena(arena);
  }
  Leave(main_thread);
}

TEST_F(JoiningTest, ArenasAreDealtToNodesInTurn) {
  EXPECT_EQ(JoinOnNode(2, [] { return size_t{0}; }, 4),
            (std::vector<size_t>{0, 2, 0, 2}));
  EXPECT_EQ(JoinOnNode(2, [] { return size_t{1}; }, 2),
            (std::vector<size_t>{1, 1}));
}

TEST_F(JoiningTest, ANodeWithoutAnArenaSharesAll) {
  EXPECT_EQ(JoinOnNode(8, [] { return size_t{5}; }, 4),
            (std::vector<size_t>{0, 1, 2, 0}));
}

TEST_F(JoiningTest, EveryoneWhoLeavesIsCounted) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int round = 0; round < 1000; ++round) {
        Arena& first = JoinArena();
        Arena& second = JoinArena();
        EXPECT_LT(first.index(), 3u);
        LeaveArena(first);
        LeaveArena(second);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  // None has one too few, nor one too many.
  const std::vector<size_t> joined = Join(6);
  EXPECT_EQ(joined, (std::vector<size_t>{0, 1, 2, 0, 1, 2}));
  Leave(joined);
  for (int i = 0; i < 3; ++i) {
    const std::vector<size_t> alone = Join(1);
    EXPECT_EQ(alone.front(), 0u);
    Leave(alone);
  }
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
