#include "arena/lock.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <ctime>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace quarry {
namespace {

using std::chrono::milliseconds;

class Counter {
 public:
  void Add() {
    LockHolder hold(lock_);
    ++value_;
  }
  long value() {
    LockHolder hold(lock_);
    return value_;
  }

 private:
  Lock lock_{LockRank::kArena};
  long value_ ABSL_GUARDED_BY(lock_) = 0;
};

TEST(Lock, LetsOneThreadInAtATime) {
  constexpr int kThreads = 4;
  constexpr long kRounds = 20000;
  Counter counter;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&counter] {
      for (long round = 0; round < kRounds; ++round) counter.Add();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter.value(), kThreads * kRounds);
}

// The holder sleeps, so that the others leave their spin and sleep, too: if a
// wake were lost, this test would hang.
TEST(Lock, WakesEverySleeper) {
  Lock lock(LockRank::kArena);
  int turns = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        LockHolder hold(lock);
        std::this_thread::sleep_for(milliseconds(1));
        ++turns;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(turns, 40);
}

TEST(Lock, TryAcquireNeverWaits) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Lock lock(LockRank::kArena);
  ASSERT_TRUE(lock.TryAcquire());
  bool acquired_by_other = false;
  std::thread([&] {
    if (lock.TryAcquire()) {
      acquired_by_other = true;
      lock.Release();
    }
  }).join();
  EXPECT_FALSE(acquired_by_other);
  lock.Release();
  ASSERT_TRUE(lock.TryAcquire());
  lock.Release();
}

double CpuSecondsOfThisThread() {
  timespec used;
  EXPECT_EQ(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used), 0);
  return static_cast<double>(used.tv_sec) +
         1e-9 * static_cast<double>(used.tv_nsec);
}

TEST(Lock, AWaiterSleeps) {
  Lock lock(LockRank::kArena);
  std::atomic<bool> held{false};
  std::thread holder([&] {
    LockHolder hold(lock);
    held = true;
    std::this_thread::sleep_for(milliseconds(100));
  });
  while (!held) std::this_thread::yield();
  const double before = CpuSecondsOfThisThread();
  lock.Acquire();
  EXPECT_LT(CpuSecondsOfThisThread() - before, 0.01);
  lock.Release();
  holder.join();
}

TEST(Lock, TellsItsHolderThatItIsWanted) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Lock lock(LockRank::kArena);
  lock.Acquire();
  EXPECT_FALSE(lock.IsContended());
  std::thread waiter([&] { LockHolder hold(lock); });
  while (!lock.IsContended()) std::this_thread::yield();
  lock.Release();
  waiter.join();
}

TEST(Lock, PreservesErrnoWhenItSleeps) {
  Lock lock(LockRank::kArena);
  std::atomic<bool> held{false};
  std::thread holder([&] {
    LockHolder hold(lock);
    held = true;
    std::this_thread::sleep_for(milliseconds(20));
  });
  while (!held) std::this_thread::yield();
  errno = 1234;
  lock.Acquire();
  lock.Release();
  EXPECT_EQ(errno, 1234);
  holder.join();
}

void HoldAllInOrder(Lock* locks, size_t count) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  for (size_t i = 0; i < count; ++i) locks[i].AcquireForFork();
}

TEST(Lock, ForkMayHoldManyOfOneRank) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Lock locks[3] = {Lock(LockRank::kArena), Lock(LockRank::kArena),
                   Lock(LockRank::kMetadata)};
  HoldAllInOrder(locks, 3);
  EXPECT_FALSE(locks[1].TryAcquire());
  for (Lock& lock : locks) lock.ReleaseAfterFork();
  for (Lock& lock : locks) {
    lock.Acquire();
    lock.Release();
  }
}

TEST(Lock, IsFreeInTheChildAfterAReset) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Lock lock(LockRank::kArena);
  lock.AcquireForFork();
  lock.ResetAfterFork();
  EXPECT_TRUE(lock.TryAcquire());
  lock.Release();
}

#ifndef NDEBUG
using LockDeathTest = testing::Test;

void AcquireBoth(LockRank first_rank, LockRank second_rank) {
  Lock first(first_rank);
  Lock second(second_rank);
  LockHolder hold_first(first);
  LockHolder hold_second(second);
}

TEST(LockDeathTest, AcceptsLocksInOrder) {
  AcquireBoth(LockRank::kRegistry, LockRank::kArena);
  AcquireBoth(LockRank::kArena, LockRank::kPageMap);
  AcquireBoth(LockRank::kArena, LockRank::kMetadata);
}

TEST(LockDeathTest, RefusesLocksOutOfOrder) {
  EXPECT_EXIT(AcquireBoth(LockRank::kMetadata, LockRank::kArena),
              testing::KilledBySignal(SIGABRT), "check failed: .*lock order");
}

TEST(LockDeathTest, RefusesTwoLocksOfOneRank) {
  EXPECT_EXIT(AcquireBoth(LockRank::kArena, LockRank::kArena),
              testing::KilledBySignal(SIGABRT), "check failed: .*lock order");
}

TEST(LockDeathTest, AssertHeldAbortsOnAFreeLock) {
  Lock lock(LockRank::kArena);
  EXPECT_EXIT(lock.AssertHeld(), testing::KilledBySignal(SIGABRT),
              "check failed");
}
#endif  // NDEBUG

}  // namespace
}  // namespace quarry
