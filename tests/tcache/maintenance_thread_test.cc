#include "tcache/maintenance_thread.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <thread>

#include "arena/report.h"
#include "gtest/gtest.h"
#include "tests/arena/in_child.h"
#include "tests/arena/sanitizers.h"

namespace quarry {
namespace {

// What the maintenance thread is to a MaintenanceThread, and no more.
class Ticker {
 public:
  explicit Ticker(MaintenanceThread& self)
      : thread_([this, &self] {
          self.NoteBegun();
          id_ = static_cast<pid_t>(syscall(SYS_gettid));
          // One pause: it is to be over when the thread is held.
          while (!self.IsToEnd()) self.Pause(60'000);
          // Late, for who does not wait.
          usleep(20'000);
        }) {}
  ~Ticker() { thread_.join(); }

  void AwaitBegin() const {
    while (id_ == 0) usleep(100);
  }
  bool IsThere() const {
    return id_ != 0 && syscall(SYS_tgkill, getpid(), id_.load(), 0) == 0;
  }

 private:
  std::atomic<pid_t> id_{0};
  std::thread thread_;
};

TEST(MaintenanceThreadTest, NoneBeginsWhileItIsHeld) {
  MaintenanceThread self;
  EXPECT_FALSE(self.IsHeld());
  self.Hold();
  self.Hold();
  EXPECT_TRUE(self.IsHeld());
  EXPECT_FALSE(self.TryBegin());
  self.Release();
  EXPECT_FALSE(self.TryBegin());
  self.Release();
  EXPECT_FALSE(self.IsHeld());
  EXPECT_TRUE(self.TryBegin());
  self.NoteFailure();
}

TEST(MaintenanceThreadTest, OneThatCouldNotBeStartedIsNotWaitedFor) {
  MaintenanceThread self;
  ASSERT_TRUE(self.TryBegin());
  self.NoteFailure();
  self.Hold();
  self.Release();
}

TEST(MaintenanceThreadTest, WhoHoldsItWaitsUntilItIsGone) {
  MaintenanceThread self;
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(self.TryBegin());
    Ticker ticker(self);
    if (i % 2 == 0) ticker.AwaitBegin();
    errno = 77;
    self.Hold();
    EXPECT_EQ(errno, 77);
    EXPECT_FALSE(ticker.IsThere()) << i;
    self.Release();
  }
}

// As in exit handlers, which the process's last thread runs.
TEST(MaintenanceThreadTest, ItDoesNotWaitForItself) {
  MaintenanceThread self;
  ASSERT_TRUE(self.TryBegin());
  self.NoteBegun();
  self.Hold();
  self.Release();
  EXPECT_TRUE(self.TryBegin());
  self.NoteFailure();
}

TEST(MaintenanceThreadTest, TheChildOfAForkHasNoneAndIsNotHeld) {
  if (kUnderTsan) GTEST_SKIP() << "a child of several threads has no others";
  static MaintenanceThread self;
  ASSERT_TRUE(self.TryBegin());
  Ticker ticker(self);
  ticker.AwaitBegin();
  EXPECT_EQ(InChild([] {
              self.ResetAfterFork();
              self.Hold();
              self.Release();
              QUARRY_CHECK(self.TryBegin());
            }),
            0);
  self.Hold();
  EXPECT_EQ(InChild([] {
              self.ResetAfterFork();
              QUARRY_CHECK(!self.IsHeld());
            }),
            0);
  self.Release();
}

}  // namespace
}  // namespace quarry
