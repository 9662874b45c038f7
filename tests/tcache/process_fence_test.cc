#include "tcache/process_fence.h"

#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>

#include "gtest/gtest.h"
#include "tests/arena/in_child.h"
#include "tests/arena/refuse_call.h"

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

TEST(ProcessFence, WaitsWhereItIsRefusedLater) {
  if (!CanFenceAllThreads()) GTEST_SKIP() << "no membarrier()";
  enum { kDone, kNoFilter, kTooFast, kErrno };
  // From now on there may be others, as far as the C library knows.
  std::thread([] {}).join();
  const int status = InChild([] {
    if (!RefuseCall(SYS_membarrier)) _exit(kNoFilter);
    // A profiler's signals do not cut it short.
    signal(SIGALRM, [](int) {});
    const itimerval often = {{0, 100}, {0, 100}};
    setitimer(ITIMER_REAL, &often, nullptr);
    errno = 7;
    const auto start = std::chrono::steady_clock::now();
    FenceAllThreads();
    if (errno != 7) _exit(kErrno);
    const auto taken = std::chrono::steady_clock::now() - start;
    _exit(taken < std::chrono::milliseconds(1) ? kTooFast : kDone);
  });
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoFilter) GTEST_SKIP() << "no seccomp()";
  EXPECT_EQ(WEXITSTATUS(status), kDone);
}

TEST(ProcessFence, WorksInTheChildOfAFork) {
  if (!CanFenceAllThreads()) GTEST_SKIP() << "no membarrier()";
  EXPECT_EQ(InChild([] {
              if (!CanFenceAllThreads()) _exit(1);
              FenceAllThreads();
            }),
            0);
}

}  // namespace
}  // namespace quarry
