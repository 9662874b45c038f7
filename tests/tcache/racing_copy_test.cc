#include "tcache/racing_copy.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/arena/in_child.h"
#include "tests/arena/refuse_call.h"

namespace quarry {
namespace {

class RacingCopy : public testing::Test {
 protected:
  void SetUp() override {
    int from = 1, to = 0;
    const RacingPiece pieces[] = {{&from, &to, sizeof(to)}};
    if (!CopyRacing(pieces)) GTEST_SKIP() << "no process_vm_readv()";
  }
};

TEST_F(RacingCopy, CopiesEachPiece) {
  std::vector<uint32_t> from(3000);
  std::iota(from.begin(), from.end(), 1u);
  uint32_t few[3] = {};
  std::vector<uint32_t> many(2000);
  const RacingPiece pieces[] = {
      {&from[5], few, sizeof(few)},
      {&from[1000], many.data(), many.size() * sizeof(uint32_t)},
      {nullptr, nullptr, 0},
  };
  errno = 7;
  ASSERT_TRUE(CopyRacing(pieces));
  EXPECT_EQ(errno, 7);
  EXPECT_EQ(few[0], 6u);
  EXPECT_EQ(few[2], 8u);
  EXPECT_TRUE(std::equal(many.begin(), many.end(), from.begin() + 1000));
  EXPECT_TRUE(CopyRacing({}));
}

TEST_F(RacingCopy, SaysWhatCannotBeRead) {
  const auto page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  char* const memory = static_cast<char*>(
      mmap(nullptr, 2 * page_bytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(mprotect(memory + page_bytes, page_bytes, PROT_NONE), 0);
  char to[16];
  const RacingPiece readable[] = {{memory + page_bytes - 16, to, 16}};
  EXPECT_TRUE(CopyRacing(readable));
  errno = 7;
  const RacingPiece half[] = {{memory + page_bytes - 8, to, 16}};
  EXPECT_FALSE(CopyRacing(half));
  const RacingPiece none[] = {{memory + page_bytes, to, 16}};
  EXPECT_FALSE(CopyRacing(none));
  EXPECT_EQ(errno, 7);
  munmap(memory, 2 * page_bytes);
}

// Each byte is one that was there. No data race, which a sanitizer would find.
TEST_F(RacingCopy, CopiesWhatIsBeingWritten) {
  uint64_t word = 0x1111111111111111;
  std::atomic<bool> is_over{false};
  std::thread writer([&] {
    while (!is_over.load(std::memory_order_relaxed)) {
      *const_cast<volatile uint64_t*>(&word) = 0x2222222222222222;
      *const_cast<volatile uint64_t*>(&word) = 0x1111111111111111;
    }
  });
  for (int i = 0; i < 2000; ++i) {
    unsigned char copy[sizeof(word)] = {};
    const RacingPiece pieces[] = {{&word, copy, sizeof(copy)}};
    ASSERT_TRUE(CopyRacing(pieces));
    for (const unsigned char byte : copy) {
      ASSERT_TRUE(byte == 0x11 || byte == 0x22) << int{byte};
    }
  }
  is_over = true;
  writer.join();
}

TEST_F(RacingCopy, SaysThatTheSystemRefuses) {
  enum { kDone, kNoFilter, kCopied, kErrno };
  const int status = InChild([] {
    if (!RefuseCall(SYS_process_vm_readv)) _exit(kNoFilter);
    int from = 1, to = 0;
    const RacingPiece pieces[] = {{&from, &to, sizeof(to)}};
    errno = 7;
    if (CopyRacing(pieces)) _exit(kCopied);
    _exit(errno == 7 ? kDone : kErrno);
  });
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoFilter) GTEST_SKIP() << "no seccomp()";
  EXPECT_EQ(WEXITSTATUS(status), kDone);
}

}  // namespace
}  // namespace quarry
