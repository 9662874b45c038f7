#include "tcache/process_fence.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(ProcessFence, LeavesErrnoAlone) {
  errno = 7;
  (void)CanFenceAllThreads();
  FenceAllThreads();
  EXPECT_EQ(errno, 7);
}

// Each stores, then loads what the other stores: without a fence between the two
// in both threads, both may miss the other. One of them has it done for it.
TEST(ProcessFence, IsAFenceInTheOtherThread) {
  if (!CanFenceAllThreads()) GTEST_SKIP() << "no membarrier()";
  constexpr int kRounds = 2'000;
  std::atomic<int> often{0}, seldom{0};
  std::atomic<int> often_saw{0};
  std::atomic<int> started{0}, ended{0};
  std::thread other([&] {
    for (int round = 1; round <= kRounds; ++round) {
      while (started.load() != round) {
      }
      often.store(round, std::memory_order_relaxed);
      std::atomic_signal_fence(std::memory_order_seq_cst);
      often_saw.store(seldom.load(std::memory_order_relaxed));
      ended.store(round);
    }
  });
  for (int round = 1; round <= kRounds; ++round) {
    started.store(round);
    seldom.store(round, std::memory_order_relaxed);
    FenceAllThreads();
    const int seldom_saw = often.load(std::memory_order_relaxed);
    while (ended.load() != round) {
    }
    ASSERT_TRUE(seldom_saw == round || often_saw.load() == round) << round;
  }
  other.join();
}

TEST(ProcessFence, WorksInTheChildOfAFork) {
  if (!CanFenceAllThreads()) GTEST_SKIP() << "no membarrier()";
  const pid_t child = fork();
  if (child == 0) {
    if (!CanFenceAllThreads()) _exit(1);
    FenceAllThreads();
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace quarry
