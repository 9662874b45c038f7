#include "arena/futex.h"

#include <atomic>
#include <cerrno>
#include <thread>

#include "arena/errno_saver.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(ErrnoSaver, PutsErrnoBackAtTheEndOfItsScope) {
  errno = 7;
  {
    ErrnoSaver saver;
    errno = EAGAIN;
  }
  EXPECT_EQ(errno, 7);
}

TEST(Futex, DoesNotSleepWhereTheWordHasChanged) {
  std::atomic<uint32_t> word{1};
  errno = 7;
  FutexWait(word, 0);
  EXPECT_TRUE(FutexWaitFor(word, 0, 60'000));
  EXPECT_EQ(errno, 7);
}

TEST(Futex, SaysWhenTheTimeHasPassed) {
  std::atomic<uint32_t> word{0};
  errno = 7;
  EXPECT_FALSE(FutexWaitFor(word, 0, 1));
  EXPECT_EQ(errno, 7);
}

TEST(Futex, IsWoken) {
  std::atomic<uint32_t> word{0};
  std::thread other([&] {
    word = 1;
    FutexWakeOne(word);
  });
  while (word == 0) FutexWait(word, 0);
  other.join();
  EXPECT_EQ(word, 1u);
}

}  // namespace
}  // namespace quarry
