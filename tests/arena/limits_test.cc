#include "arena/limits.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/arena/in_child.h"
#include "tests/arena/sanitizers.h"

namespace quarry {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// What the functions without a context of their own see.
MemoryLimits* current = nullptr;
int releases = 0;
size_t released_bytes = 0;

void Release() {
  ++releases;
  current->Refund(released_bytes);
  released_bytes = 0;
}

struct Told {
  int times = 0;
  size_t mapped_bytes = 0;
  size_t soft_bytes = 0;

  static void Call(void* context, size_t mapped_bytes, size_t soft_bytes) {
    Told* const told = static_cast<Told*>(context);
    ++told->times;
    told->mapped_bytes = mapped_bytes;
    told->soft_bytes = soft_bytes;
    errno = EBADF;
  }
};

class MemoryLimitsTest : public testing::Test {
 protected:
  MemoryLimitsTest() {
    current = &limits_;
    releases = 0;
    limits_.SetCallback(Told::Call, &told_);
  }
  ~MemoryLimitsTest() override {
    settings.soft_limit_bytes = 0;
    settings.hard_limit_bytes = 0;
  }

  void Charge(size_t bytes) { ASSERT_TRUE(limits_.Charge(bytes)); }

  void RelieveIfDue() {
    if (limits_.PressureIsDue()) limits_.Relieve(Release);
  }

  MemoryLimits limits_{"/nonexistent"};
  Told told_;
};

TEST_F(MemoryLimitsTest, TheHardLimitIsNeverPassed) {
  limits_.SetLimits(0, 10 * kMiB);
  Charge(10 * kMiB);
  EXPECT_FALSE(limits_.Charge(1));
  EXPECT_FALSE(limits_.Charge(~size_t{0}));
  limits_.Refund(kMiB);
  EXPECT_FALSE(limits_.Charge(kMiB + 1));
  Charge(kMiB);
  limits_.SetLimits(0, kMiB);
  EXPECT_FALSE(limits_.Charge(1)) << "lowered below what is mapped";
  limits_.SetLimits(0, 0);
  Charge(100 * kMiB);
}

TEST_F(MemoryLimitsTest, PassingTheSoftLimitReleasesAndTells) {
  limits_.SetLimits(16 * kMiB, 0);
  Charge(16 * kMiB);
  EXPECT_FALSE(limits_.PressureIsDue());
  EXPECT_FALSE(limits_.AboveSoftLimit());
  Charge(1);
  EXPECT_TRUE(limits_.PressureIsDue());
  EXPECT_TRUE(limits_.AboveSoftLimit());
  errno = 1234;
  RelieveIfDue();
  EXPECT_EQ(errno, 1234);
  EXPECT_FALSE(limits_.PressureIsDue());
  EXPECT_EQ(releases, 1);
  EXPECT_EQ(told_.times, 1);
  EXPECT_EQ(told_.mapped_bytes, 16 * kMiB + 1);
  EXPECT_EQ(told_.soft_bytes, 16 * kMiB);
}

// Its own threads do not wait for who tells, so they may have come above the limit again.
TEST_F(MemoryLimitsTest, WhatGrewMeanwhileIsRelievedNext) {
  limits_.SetLimits(16 * kMiB, 0);
  Charge(17 * kMiB);
  limits_.SetCallback(
      [](void* limits, size_t, size_t) {
        auto* const own = static_cast<MemoryLimits*>(limits);
        EXPECT_TRUE(own->Charge(8 * kMiB));
        own->Relieve(Release);
        EXPECT_FALSE(own->PressureIsDue()) << "it was cleared in vain";
      },
      &limits_);
  RelieveIfDue();
  EXPECT_TRUE(limits_.PressureIsDue());
  limits_.SetCallback(nullptr, nullptr);
  limits_.Refund(8 * kMiB);
}

TEST_F(MemoryLimitsTest, IsToldAgainOnlyAfterASixteenthMore) {
  limits_.SetLimits(16 * kMiB, 0);
  Charge(17 * kMiB);
  RelieveIfDue();
  Charge(kMiB);
  RelieveIfDue();
  EXPECT_EQ(told_.times, 1);
  Charge(1);
  RelieveIfDue();
  EXPECT_EQ(told_.times, 2);
}

TEST_F(MemoryLimitsTest, IsToldAgainAfterUseFellASixteenthBelow) {
  limits_.SetLimits(16 * kMiB, 0);
  Charge(17 * kMiB);
  RelieveIfDue();
  limits_.Refund(2 * kMiB - 1);
  Charge(kMiB);
  RelieveIfDue();
  EXPECT_EQ(told_.times, 1);
  limits_.Refund(kMiB + 1);
  Charge(kMiB + 1);
  RelieveIfDue();
  EXPECT_EQ(told_.times, 2);
}

TEST_F(MemoryLimitsTest, IsNotRelievedEachTimeUsePassesTheLimit) {
  limits_.SetLimits(16 * kMiB, 0);
  Charge(16 * kMiB);
  for (int i = 0; i < 100; ++i) {
    Charge(1);
    released_bytes = limits_.PressureIsDue() ? 1 : 0;
    RelieveIfDue();
    if (i > 0) limits_.Refund(1);
  }
  EXPECT_EQ(releases, 1);
  EXPECT_EQ(told_.times, 0);
}

TEST_F(MemoryLimitsTest, IsNotToldWhenReleasingWasEnough) {
  limits_.SetLimits(16 * kMiB, 0);
  Charge(17 * kMiB);
  released_bytes = 2 * kMiB;
  RelieveIfDue();
  EXPECT_EQ(releases, 1);
  EXPECT_EQ(told_.times, 0);
  Charge(2 * kMiB);
  RelieveIfDue();
  EXPECT_EQ(told_.times, 1);
}

TEST_F(MemoryLimitsTest, ALimitBelowWhatIsMappedIsPassedAtOnce) {
  Charge(20 * kMiB);
  EXPECT_FALSE(limits_.PressureIsDue());
  limits_.SetLimits(16 * kMiB, 0);
  RelieveIfDue();
  EXPECT_EQ(told_.times, 1);
}

TEST_F(MemoryLimitsTest, TheCallbackMayAllocate) {
  limits_.SetLimits(16 * kMiB, 0);
  limits_.SetCallback(
      [](void* context, size_t, size_t) {
        ++*static_cast<int*>(context);
        ASSERT_TRUE(current->Charge(8 * kMiB));
        ASSERT_TRUE(current->PressureIsDue());
        current->Relieve(Release);
      },
      &told_.times);
  Charge(17 * kMiB);
  RelieveIfDue();
  EXPECT_EQ(told_.times, 1);
  EXPECT_EQ(releases, 1);
  limits_.SetCallback(nullptr, nullptr);
  Charge(17 * kMiB);
  RelieveIfDue();
  EXPECT_EQ(releases, 2);
}

// A fork in the callback leaves a child in which the parent's relief never
// ends.
TEST_F(MemoryLimitsTest, AChildOfTheCallbackRelievesItself) {
  limits_.SetLimits(16 * kMiB, 0);
  limits_.SetCallback(
      [](void* context, size_t, size_t) {
        const pid_t child = fork();
        if (child == 0) {
          releases = 0;
          current->SetCallback(nullptr, nullptr);
          static_cast<void>(current->Charge(8 * kMiB));
          current->Relieve(Release);
          _exit(releases);
        }
        waitpid(child, static_cast<int*>(context), 0);
      },
      &told_.times);
  Charge(17 * kMiB);
  RelieveIfDue();
  EXPECT_TRUE(WIFEXITED(told_.times));
  EXPECT_EQ(WEXITSTATUS(told_.times), 1);
}

TEST_F(MemoryLimitsTest, WhereThereAreNoneNothingHappens) {
  Charge(MemoryLimits::kLookUpBytes);
  EXPECT_FALSE(limits_.PressureIsDue());
  Charge(1);
  EXPECT_TRUE(limits_.PressureIsDue()) << "to look the system's limit up";
  RelieveIfDue();
  Charge(size_t{1} << 40);
  EXPECT_FALSE(limits_.PressureIsDue());
  EXPECT_FALSE(limits_.AboveSoftLimit());
  EXPECT_EQ(releases, 0);
}

TEST(MemoryLimits, ThatOfTheControlGroupIsTheDefault) {
  const std::string root = testing::TempDir() + "/limits_test_root";
  const auto write = [&](const std::string& path, const char* text) {
    const std::filesystem::path file = root + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  };
  write("/proc/self/cgroup", "0::/a\n");
  write("/sys/fs/cgroup/a/memory.max", "67108864\n");
  MemoryLimits limits(root.c_str());
  Told told;
  limits.SetCallback(Told::Call, &told);
  current = &limits;
  ASSERT_TRUE(limits.Charge(60 * kMiB));
  EXPECT_FALSE(limits.AboveSoftLimit()) << "not looked up yet";
  limits.Relieve(Release);
  EXPECT_EQ(told.times, 0);
  ASSERT_TRUE(limits.Charge(5 * kMiB));
  EXPECT_TRUE(limits.AboveSoftLimit());
  limits.Relieve(Release);
  EXPECT_EQ(told.times, 1);
  EXPECT_EQ(told.soft_bytes, 64 * kMiB);
  // One that is set comes first.
  limits.SetLimits(size_t{1} << 30, 0);
  EXPECT_FALSE(limits.AboveSoftLimit());
  settings.soft_limit_bytes = 0;
  std::filesystem::remove_all(root);
}

TEST(MemoryLimitsThreads, ChargeRefundAndRelieve) {
  MemoryLimits limits("/nonexistent");
  limits.SetLimits(8 * kMiB, 10 * kMiB);
  std::atomic<int> told{0};
  // Called with the context of nobody if the two were not replaced as one.
  const MemoryLimits::Callback callback = [](void* context, size_t, size_t) {
    ++*static_cast<std::atomic<int>*>(context);
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5000; ++i) {
        if (!limits.Charge(3 * kMiB)) continue;
        EXPECT_LE(limits.mapped_bytes(), 10 * kMiB);
        if (limits.PressureIsDue()) limits.Relieve([] {});
        limits.Refund(3 * kMiB);
      }
    });
  }
  for (int i = 0; i < 1000; ++i) {
    limits.SetCallback(callback, &told);
    limits.SetCallback(nullptr, nullptr);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(limits.mapped_bytes(), 0u);
  settings.soft_limit_bytes = 0;
  settings.hard_limit_bytes = 0;
}

// Whose thread was about to replace it when the child was made.
TEST(MemoryLimitsFork, AChildMayReplaceTheCallback) {
  if (kUnderTsan) GTEST_SKIP() << "a child of a process with threads";
  static MemoryLimits limits("/nonexistent");
  static bool was_told;
  const MemoryLimits::Callback callback = [](void*, size_t, size_t) { was_told = true; };
  std::atomic<bool> stop{false};
  std::thread replacing([&] {
    while (!stop) limits.SetCallback(callback, nullptr);
  });
  for (int i = 0; i < 200 && !testing::Test::HasFailure(); ++i) {
    EXPECT_EQ(InChild([&] {
                limits.SetCallback(callback, nullptr);
                limits.SetLimits(kMiB, 0);
                if (!limits.Charge(2 * kMiB)) _exit(2);
                limits.Relieve([] {});
                if (!was_told) _exit(1);
              }),
              0);
  }
  stop = true;
  replacing.join();
}

}  // namespace
}  // namespace quarry
