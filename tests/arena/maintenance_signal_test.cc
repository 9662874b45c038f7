#include "arena/maintenance_signal.h"

#include <atomic>
#include <thread>

#include "gtest/gtest.h"
#include "tests/arena/in_child.h"

namespace quarry {
namespace {

using State = MaintenanceSignal::State;

constexpr size_t kMiB = size_t{1} << 20;

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

TEST(MaintenanceSignal, OneThreadAndOneArenaHaveAMebibyteEach) {
  MaintenanceSignal signal;
  signal.NoteKept(kMiB);
  signal.NoteDirty(kMiB);
  EXPECT_EQ(signal.state(), State::kNoThread);
  signal.NoteDirty(kMiB + 1);
  EXPECT_TRUE(signal.IsWanted());
  MaintenanceSignal other_signal;
  other_signal.NoteKept(kMiB + 1);
  EXPECT_TRUE(other_signal.IsWanted());
}

// What none of them notes is a mebibyte at most, or 64 KiB in each place.
TEST(MaintenanceSignal, ManyThreadsAndArenasShareIt) {
  struct {
    size_t threads, arenas, thread_share, arena_share;
  } const kCases[] = {
      {0, 0, kMiB, kMiB},
      {1, 1, kMiB, kMiB},
      {2, 1, kMiB / 2, kMiB},
      {10, 4, kMiB / 10, kMiB / 4},
      {16, 16, 64 << 10, 64 << 10},
      {100000, 32, 64 << 10, 64 << 10},
  };
  for (const auto& c : kCases) {
    MaintenanceSignal signal;
    signal.SetPlaces(c.threads, c.arenas);
    signal.NoteKept(c.thread_share);
    signal.NoteDirty(c.arena_share);
    EXPECT_EQ(signal.state(), State::kNoThread);
    signal.NoteKept(c.thread_share + 1);
    EXPECT_TRUE(signal.IsWanted());
    MaintenanceSignal other_signal;
    other_signal.SetPlaces(c.threads, c.arenas);
    other_signal.NoteDirty(c.arena_share + 1);
    EXPECT_TRUE(other_signal.IsWanted());
    other_signal.SetPlaces(1, 1);
    ASSERT_TRUE(other_signal.TryStart());
    other_signal.FallAsleep();
    other_signal.NoteKept(kMiB);
    EXPECT_EQ(other_signal.state(), State::kAsleep);
  }
}

// To be asked before NoteKept(), by who has no time for a call that does nothing.
TEST(MaintenanceSignal, TellsWhetherACallWouldDoAnything) {
  MaintenanceSignal signal;
  constexpr size_t kShare = MaintenanceSignal::kNotedBytes;
  EXPECT_FALSE(signal.IsWantedFor(kShare));
  EXPECT_TRUE(signal.IsWantedFor(kShare + 1));
  signal.NoteKept(kShare + 1);
  ASSERT_TRUE(signal.IsWanted());
  EXPECT_TRUE(signal.IsWantedFor(0)) << "to start the thread";
  ASSERT_TRUE(signal.TryStart());
  EXPECT_FALSE(signal.IsWantedFor(kShare + 1)) << "it is awake";
  signal.FallAsleep();
  EXPECT_FALSE(signal.IsWantedFor(kShare));
  EXPECT_TRUE(signal.IsWantedFor(kShare + 1));
  signal.TurnOff();
  EXPECT_FALSE(signal.IsWantedFor(kShare + 1));
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
