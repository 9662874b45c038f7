#include "tcache/biased_lock.h"

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
  lock_.Acquire();
  lock_.EndBias();
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

// One owner and two others, at work and in all ways: a counter that nothing else
// guards loses no addition, and ThreadSanitizer sees no race.
TEST_F(BiasedLockTest, LetsOneThreadInAtATime) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  constexpr int kOwnerRounds = 300'000;
  constexpr int kOtherRounds = 2'000;
  lock_.GiveBias();
  long value = 0;
  std::atomic<long> additions{0};
  std::vector<std::thread> others;
  for (uint32_t i = 0; i < 2; ++i) {
    others.emplace_back([&, i]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      std::mt19937 random(TestSeed() + i);
      for (int round = 0; round < kOtherRounds; ++round) {
        if (random() % 2 == 0) {
          lock_.Acquire();
        } else if (!lock_.TryAcquire()) {
          continue;
        }
        ++value;
        additions.fetch_add(1, std::memory_order_relaxed);
        lock_.Release();
      }
    });
  }
  long owned = 0;
  for (int round = 0; round < kOwnerRounds; ++round) {
    if (round % 4 == 0) {
      if (!lock_.TryAcquireAsOwner()) continue;
    } else {
      lock_.AcquireAsOwner();
    }
    ++value;
    ++owned;
    lock_.ReleaseAsOwner();
  }
  for (std::thread& other : others) other.join();
  EXPECT_EQ(value, owned + additions.load());
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
