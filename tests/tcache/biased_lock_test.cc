#include "tcache/biased_lock.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tcache/process_fence.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

using std::chrono::milliseconds;

class BiasedLockTest : public testing::Test {
 protected:
  // What another thread's TryAcquire() says.
  bool IsFreeForOthers() {
    bool acquired = false;
    std::thread([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      if (lock_.TryAcquire()) {
        acquired = true;
        lock_.Release();
      }
    }).join();
    return acquired;
  }

  BiasedLock lock_{LockRank::kCache};
};

TEST_F(BiasedLockTest, WithoutABiasItIsALock) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  EXPECT_TRUE(IsFreeForOthers());
  lock_.AcquireAsOwner();
  EXPECT_FALSE(IsFreeForOthers());
  lock_.ReleaseAsOwner();
  lock_.Acquire();
  EXPECT_FALSE(lock_.TryAcquireAsOwner());
  EXPECT_FALSE(IsFreeForOthers());
  lock_.Release();
  EXPECT_TRUE(IsFreeForOthers());
}

TEST_F(BiasedLockTest, TheOwnerKeepsOthersOut) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  lock_.AcquireAsOwner();
  EXPECT_FALSE(IsFreeForOthers());
  lock_.ReleaseAsOwner();
  EXPECT_TRUE(IsFreeForOthers());
  ASSERT_TRUE(lock_.TryAcquireAsOwner()) << "the others gave the bias back";
  EXPECT_FALSE(IsFreeForOthers());
  lock_.ReleaseAsOwner();
}

TEST_F(BiasedLockTest, OthersKeepTheOwnerOut) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  // As any thread, which the owner may do, too.
  lock_.Acquire();
  EXPECT_FALSE(lock_.TryAcquireAsOwner());
  EXPECT_FALSE(IsFreeForOthers());
  lock_.Release();
  ASSERT_TRUE(lock_.TryAcquire());
  EXPECT_FALSE(lock_.TryAcquireAsOwner());
  lock_.Release();
  EXPECT_TRUE(lock_.TryAcquireAsOwner());
  lock_.ReleaseAsOwner();
}

TEST_F(BiasedLockTest, AfterTheOwnerItIsALockAgain)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  lock_.AcquireAndEndBias();
  EXPECT_FALSE(IsFreeForOthers());
  lock_.Release();
  ASSERT_TRUE(lock_.TryAcquire());
  EXPECT_FALSE(lock_.TryAcquireAsOwner());
  lock_.Release();
  // The next owner's.
  lock_.GiveBias();
  lock_.AcquireAsOwner();
  EXPECT_FALSE(IsFreeForOthers());
  lock_.ReleaseAsOwner();
}

TEST_F(BiasedLockTest, AcquireWaitsForTheOwner) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  lock_.AcquireAsOwner();
  std::atomic<bool> is_inside{true};
  std::thread other([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock_.Acquire();
    EXPECT_FALSE(is_inside.load());
    lock_.Release();
  });
  std::this_thread::sleep_for(milliseconds(20));
  is_inside = false;
  lock_.ReleaseAsOwner();
  other.join();
}

TEST_F(BiasedLockTest, TheOwnerWaitsForOthers) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  std::atomic<bool> is_inside{false};
  std::thread other([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock_.Acquire();
    is_inside = true;
    // So long that the owner sleeps.
    while (!lock_.IsContended()) std::this_thread::sleep_for(milliseconds(1));
    is_inside = false;
    lock_.Release();
  });
  while (!is_inside) std::this_thread::yield();
  lock_.AcquireAsOwner();
  EXPECT_FALSE(is_inside.load());
  lock_.ReleaseAsOwner();
  other.join();
}

// Adds one, in a way that takes a while, so that whoever else comes in meanwhile
// makes it lose an addition.
void AddSlowly(long* value, int turns) {
  const long before = *value;
  for (int i = 0; i < turns; ++i) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  *value = before + 1;
}

// One owner, at work for as long as two others are, and in all ways: a number that
// nothing else guards loses no addition, and ThreadSanitizer sees no race.
TEST_F(BiasedLockTest, LetsOneThreadInAtATime) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  constexpr int kOtherRounds = 20'000;
  const uint32_t seed = TestSeed();
  lock_.GiveBias();
  long value = 0;
  std::atomic<long> additions{0};
  std::atomic<int> running{2};
  std::vector<std::thread> others;
  for (uint32_t i = 0; i < 2; ++i) {
    others.emplace_back([&, i]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      std::mt19937 random(seed + i);
      for (int round = 0; round < kOtherRounds; ++round) {
        if (random() % 2 == 0) {
          lock_.Acquire();
        } else if (!lock_.TryAcquire()) {
          continue;
        }
        AddSlowly(&value, 200);
        additions.fetch_add(1, std::memory_order_relaxed);
        lock_.Release();
      }
      running.fetch_sub(1);
    });
  }
  long owned = 0;
  for (long round = 0; running.load(std::memory_order_relaxed) > 0; ++round) {
    if (round % 4 != 0) {
      lock_.AcquireAsOwner();
    } else if (!lock_.TryAcquireAsOwner()) {
      continue;
    }
    // At times for longer than a fence takes.
    AddSlowly(&value, round % 16 == 0 ? 40'000 : 200);
    ++owned;
    lock_.ReleaseAsOwner();
  }
  for (std::thread& other : others) other.join();
  EXPECT_EQ(value, owned + additions.load());
  EXPECT_GT(owned, 0);
  EXPECT_GT(additions.load(), 0);
}

// The owner's way is the short one: no locked instruction and no call can be seen,
// but that the lock itself stays free.
TEST_F(BiasedLockTest, TheOwnerDoesNotTakeTheLock)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (!CanFenceAllThreads()) GTEST_SKIP() << "no membarrier()";
  lock_.GiveBias();
  lock_.AcquireAsOwner();
  // What fork() does first waits only for the lock.
  std::thread([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    EXPECT_TRUE(lock_.AcquireForFork());
    lock_.ReleaseAfterFork();
  }).join();
  lock_.ReleaseAsOwner();
  EXPECT_TRUE(IsFreeForOthers());
}

TEST_F(BiasedLockTest, AForkWaitsForTheOwnerAndLeavesTheBias)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  const bool has_bias = CanFenceAllThreads();
  EXPECT_EQ(lock_.AcquireForFork(), has_bias);
  lock_.AwaitOwner();
  // Without a note of the order of locks, which fork() has none of.
  std::thread([&] { EXPECT_FALSE(lock_.TryAcquireAsOwner()); }).join();
  lock_.ResetAfterFork();
  EXPECT_EQ(lock_.AcquireForFork(), has_bias);
  lock_.ReleaseAfterFork();
  EXPECT_TRUE(IsFreeForOthers());
}

// The thread of the owner is not in the child, wherever it was.
TEST_F(BiasedLockTest, AForksChildFindsNobodyInside)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  std::thread([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    lock_.AcquireAsOwner();
  }).join();
  (void)lock_.AcquireForFork();
  lock_.ResetAfterFork();
  EXPECT_TRUE(IsFreeForOthers());
}

// Locks are held where it waits, so nothing may end the thread there.
TEST_F(BiasedLockTest, NoThreadIsCancelledWhereItWaits)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  lock_.GiveBias();
  lock_.AcquireAsOwner();
  std::atomic<bool> is_waiting{false}, has_it{false};
  std::thread other([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    pthread_cancel(pthread_self());
    is_waiting = true;
    lock_.Acquire();
    has_it = true;
    lock_.Release();
    // No more is to be cancelled, and std::thread would not survive it.
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
  });
  while (!is_waiting) std::this_thread::yield();
  std::this_thread::sleep_for(milliseconds(5));
  lock_.ReleaseAsOwner();
  other.join();
  EXPECT_TRUE(has_it);
}

#ifndef NDEBUG
TEST_F(BiasedLockTest, TheOwnersWayKeepsTheOrder) {
  lock_.GiveBias();
  EXPECT_DEATH(
      ([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        Lock later(LockRank::kArena);
        later.Acquire();
        lock_.AcquireAsOwner();
      })(),
      "lock order");
  EXPECT_DEATH(
      ([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        lock_.AcquireAsOwner();
        lock_.AcquireAsOwner();
      })(),
      "lock order");
}
#endif

}  // namespace
}  // namespace quarry
