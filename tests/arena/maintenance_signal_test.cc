#include "arena/maintenance_signal.h"

#include <atomic>
#include <thread>

#include "gtest/gtest.h"
#include "tests/arena/in_child.h"

namespace quarry {
namespace {

using State = MaintenanceSignal::State;

TEST(MaintenanceSignal, WorkWantsAThreadThatOneCallerStarts) {
  MaintenanceSignal signal;
  EXPECT_EQ(signal.state(), State::kNoThread);
  EXPECT_FALSE(signal.TryStart());
  signal.NoteWork();
  EXPECT_TRUE(signal.IsWanted());
  signal.NoteWork();
  EXPECT_TRUE(signal.IsWanted());
  EXPECT_TRUE(signal.TryStart());
  EXPECT_EQ(signal.state(), State::kAwake);
  EXPECT_FALSE(signal.TryStart());
  signal.NoteWork();
  EXPECT_EQ(signal.state(), State::kAwake);
}

TEST(MaintenanceSignal, WhatIsOffStaysOff) {
  MaintenanceSignal signal;
  signal.NoteWork();
  signal.TurnOff();
  signal.NoteWork();
  EXPECT_TRUE(signal.IsOff());
  EXPECT_FALSE(signal.TryStart());
  signal.ResetAfterFork();
  EXPECT_TRUE(signal.IsOff());
}

TEST(MaintenanceSignal, AForksChildWantsAThreadIfThereWasWork) {
  MaintenanceSignal signal;
  signal.ResetAfterFork();
  EXPECT_EQ(signal.state(), State::kNoThread);
  signal.NoteWork();
  signal.ResetAfterFork();
  EXPECT_TRUE(signal.IsWanted());
  ASSERT_TRUE(signal.TryStart());
  signal.ResetAfterFork();
  EXPECT_TRUE(signal.IsWanted());
  ASSERT_TRUE(signal.TryStart());
  signal.FallAsleep();
  signal.ResetAfterFork();
  EXPECT_EQ(signal.state(), State::kNoThread);
}

TEST(MaintenanceSignal, AWaitEndsWithItsTime) {
  MaintenanceSignal signal;
  signal.FallAsleep();
  EXPECT_FALSE(signal.WaitForWork(1));
  EXPECT_EQ(signal.state(), State::kAwake);
}

TEST(MaintenanceSignal, ThereIsNoWaitOnceThereIsWork) {
  MaintenanceSignal signal;
  signal.FallAsleep();
  signal.NoteWork();
  EXPECT_TRUE(signal.WaitForWork(60'000));
  EXPECT_EQ(signal.state(), State::kAwake);
  signal.FallAsleep();
  signal.StayAwake();
  EXPECT_EQ(signal.state(), State::kAwake);
}

// The protocol of the header, with a counter as the work that is made without a
// lock: if a wake were missed, the work would stay undone and the test hang.
TEST(MaintenanceSignal, NoWorkIsForgotten) {
  constexpr int kRounds = 20000;
  MaintenanceSignal signal;
  signal.NoteWork();
  ASSERT_TRUE(signal.TryStart());
  std::atomic<int> work{0};
  std::atomic<int> done{0};
  std::thread worker([&] {
    while (done.load(std::memory_order_relaxed) < kRounds) {
      const auto look = [&] {
        const int found = work.exchange(0, std::memory_order_seq_cst);
        done.fetch_add(found, std::memory_order_relaxed);
        return found != 0;
      };
      if (look()) continue;
      signal.FallAsleep();
      if (look()) {
        signal.StayAwake();
      } else if (done.load(std::memory_order_relaxed) < kRounds) {
        signal.WaitForWork(60'000);
      }
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    work.fetch_add(1, std::memory_order_seq_cst);
    signal.NoteWork();
    // Each is done before the next is made, or the thread would not sleep.
    ASSERT_TRUE(Soon([&] {
      for (int spin = 0; spin < 10000; ++spin) {
        if (done.load(std::memory_order_relaxed) > i) return true;
        if (spin % 100 == 99) std::this_thread::yield();
      }
      return false;
    })) << "in round "
        << i;
  }
  worker.join();
}

}  // namespace
}  // namespace quarry
