#include "arena/dirty_runs.h"

#include <csignal>
#include <deque>
#include <vector>

#include "arena/run.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

// Inside a fixture, Run is a member of testing::Test.
using PageRun = Run;

// Runs without pages behind them: the list never looks there.
class DirtyRunsTest : public testing::Test {
 protected:
  PageRun* MakeRun(uint32_t pages, uint32_t dirty_pages) {
    PageRun& run = runs_.emplace_back();
    run.pages = pages;
    run.dirty_pages = dirty_pages;
    return &run;
  }

  PageRun* Add(uint32_t dirty_pages, uint32_t now_ms) {
    PageRun* const run = MakeRun(1000, dirty_pages);
    dirty_.Add(run, now_ms);
    return run;
  }

  std::vector<PageRun*> Listed() {
    size_t count;
    dirty_.Verify(&count);
    std::vector<PageRun*> listed;
    for (PageRun* run = dirty_.oldest(); run != nullptr; run = run->newer) {
      listed.push_back(run);
    }
    EXPECT_EQ(listed.size(), count);
    return listed;
  }

  using List = std::vector<PageRun*>;

  std::deque<PageRun> runs_;
  DirtyRuns dirty_;
};

using DirtyRunsDeathTest = DirtyRunsTest;

TEST_F(DirtyRunsTest, ListsTheOldestFirst) {
  EXPECT_EQ(Listed(), List());
  PageRun* const a = Add(5, 100);
  PageRun* const b = Add(7, 100);
  PageRun* const c = Add(1, 200);
  EXPECT_EQ(Listed(), (List{a, b, c}));
  EXPECT_EQ(dirty_.pages(), 13u);
  dirty_.Remove(b);
  EXPECT_EQ(Listed(), (List{a, c}));
  dirty_.Remove(c);
  dirty_.Remove(a);
  EXPECT_EQ(Listed(), List());
  EXPECT_EQ(dirty_.pages(), 0u);
}

TEST_F(DirtyRunsTest, OrdersTimesAcrossTheEndOfTheClock) {
  PageRun* const a = Add(5, ~0u - 10);
  PageRun* const b = Add(7, 10);
  EXPECT_EQ(Listed(), (List{a, b}));
}

TEST_F(DirtyRunsTest, ListsNoCleanRun) {
  PageRun* const clean = Add(0, 100);
  EXPECT_EQ(Listed(), List());
  dirty_.Remove(clean);
  EXPECT_EQ(dirty_.pages(), 0u);
}

TEST_F(DirtyRunsTest, AJoinedRunHasTheAgeOfItsDirtierPart) {
  PageRun* const a = Add(5, 100);
  PageRun* const b = Add(50, 200);
  PageRun* const c = Add(6, 300);
  PageRun* const clean = MakeRun(1000, 0);
  dirty_.Join(clean, c);
  EXPECT_EQ(Listed(), (List{a, b, clean}));
  EXPECT_EQ(clean->freed_ms, 300u);
  dirty_.Join(clean, b);
  EXPECT_EQ(Listed(), (List{a, clean}));
  EXPECT_EQ(clean->freed_ms, 200u);
  dirty_.Join(clean, a);
  EXPECT_EQ(Listed(), List{clean});
  EXPECT_EQ(clean->freed_ms, 200u);
  EXPECT_EQ(clean->dirty_pages, 61u);
  EXPECT_EQ(dirty_.pages(), 61u);
  dirty_.Join(clean, b);  // Has none left.
  EXPECT_EQ(dirty_.pages(), 61u);
}

TEST_F(DirtyRunsTest, MoreDirtyPagesMakeARunYoungOnlyIfTheyAreTheMost) {
  PageRun* const a = Add(20, 100);
  PageRun* const b = Add(50, 200);
  dirty_.Raise(a, 20, 300);
  EXPECT_EQ(Listed(), (List{a, b}));
  EXPECT_EQ(a->freed_ms, 100u);
  EXPECT_EQ(a->dirty_pages, 40u);
  EXPECT_EQ(dirty_.pages(), 90u);
  dirty_.Raise(a, 41, 400);
  EXPECT_EQ(Listed(), (List{b, a}));
  EXPECT_EQ(a->freed_ms, 400u);
  EXPECT_EQ(dirty_.pages(), 131u);
  PageRun* const clean = MakeRun(1000, 0);
  dirty_.Raise(clean, 3, 500);
  EXPECT_EQ(Listed(), (List{b, a, clean}));
  EXPECT_EQ(clean->freed_ms, 500u);
  EXPECT_EQ(dirty_.pages(), 134u);
}

TEST_F(DirtyRunsTest, BothPartsOfASplitKeepTheAge) {
  PageRun* const a = Add(20, 100);
  PageRun* const b = Add(50, 200);
  PageRun* const part = MakeRun(1000, 0);
  dirty_.Split(a, part, 8);
  EXPECT_EQ(Listed(), (List{a, part, b}));
  EXPECT_EQ(part->freed_ms, 100u);
  EXPECT_EQ(a->dirty_pages, 12u);
  PageRun* const rest = MakeRun(1000, 0);
  dirty_.Split(a, rest, 12);
  EXPECT_EQ(Listed(), (List{rest, part, b}));
  PageRun* const none = MakeRun(1000, 0);
  dirty_.Split(b, none, 0);
  EXPECT_EQ(Listed(), (List{rest, part, b}));
  EXPECT_EQ(dirty_.pages(), 70u);
}

TEST_F(DirtyRunsTest, ARunWithoutDirtyPagesLeaves) {
  PageRun* const a = Add(20, 100);
  dirty_.Reduce(a, 15);
  EXPECT_EQ(Listed(), List{a});
  EXPECT_EQ(dirty_.pages(), 5u);
  dirty_.Reduce(a, 0);
  dirty_.Reduce(a, 5);
  EXPECT_EQ(Listed(), List());
  dirty_.Reduce(a, 0);
  EXPECT_EQ(dirty_.pages(), 0u);
}

TEST_F(DirtyRunsDeathTest, VerifyFindsABrokenInvariant) {
  PageRun* const a = Add(20, 100);
  Add(20, 200);
  a->dirty_pages = 19;
  size_t count;
  EXPECT_EXIT(dirty_.Verify(&count), testing::KilledBySignal(SIGABRT),
              "check failed");
  a->dirty_pages = 20;
  a->freed_ms = 300;
  EXPECT_EXIT(dirty_.Verify(&count), testing::KilledBySignal(SIGABRT),
              "check failed");
}

}  // namespace
}  // namespace quarry
