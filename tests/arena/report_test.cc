#include "arena/report.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <string>

#include "gtest/gtest.h"

namespace quarry {
namespace {

const void* At(uintptr_t address) {
  return reinterpret_cast<const void*>(address);
}

// The whole of what goes to stderr, and the way the process ends.
#define EXPECT_REPORT(statement, text)                     \
  EXPECT_EXIT(statement, testing::KilledBySignal(SIGABRT), \
              testing::Eq(std::string("quarry: ") + text + ", aborting\n"))

std::string TextOf(const LineBuffer& line) {
  return std::string(line.text(), line.bytes());
}

TEST(LineBuffer, AppendsTextAndNumbers) {
  LineBuffer line;
  line.AppendText("a ").AppendText("bcdef", 2).AppendText(" ");
  line.AppendDecimal(0).AppendText(" ").AppendDecimal(~uint64_t{0});
  line.AppendText(" ").AppendHex(uintptr_t{0}).AppendText(" ");
  line.AppendHex(~uintptr_t{0}).AppendText(" ").AppendHex(At(0xabc0));
  EXPECT_EQ(TextOf(line),
            "a bc 0 18446744073709551615 0x0 0xffffffffffffffff 0xabc0");
}

TEST(LineBuffer, CutsOffWhatDoesNotFitAndKeepsTheNewline) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  LineBuffer line;
  for (int i = 0; i < 100; ++i) line.AppendText("0123456789");
  line.AppendDecimal(5);
  EXPECT_EQ(line.bytes(), LineBuffer::kCapacityBytes - 1);
  line.Flush(ends[1]);
  EXPECT_EQ(line.bytes(), 0u);
  char read_back[2 * LineBuffer::kCapacityBytes];
  ASSERT_EQ(read(ends[0], read_back, sizeof(read_back)),
            static_cast<ssize_t>(LineBuffer::kCapacityBytes));
  EXPECT_EQ(read_back[LineBuffer::kCapacityBytes - 1], '\n');
  EXPECT_EQ(std::string(read_back, 12), "012345678901");
  close(ends[0]);
  close(ends[1]);
}

TEST(WriteText, NoSignalComesOfAPipeThatNobodyReads) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  errno = 1234;
  WriteText(ends[1], "lost", 4);
  EXPECT_EQ(errno, 1234);
  close(ends[1]);
}

TEST(WriteText, ASignalThatWasPendingStaysSo) {
  sigset_t pipe_signal, mask, pending;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &pipe_signal, &mask), 0);
  raise(SIGPIPE);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  WriteText(ends[1], "lost", 4);
  close(ends[1]);
  ASSERT_EQ(sigpending(&pending), 0);
  EXPECT_EQ(sigismember(&pending, SIGPIPE), 1);
  const timespec at_once = {};
  EXPECT_EQ(sigtimedwait(&pipe_signal, nullptr, &at_once), SIGPIPE);
  EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &mask, nullptr), 0);
}

TEST(LineBuffer, LosesWhatTheDescriptorRefusesAndKeepsErrno) {
  LineBuffer line;
  line.AppendText("lost");
  errno = 1234;
  line.Flush(-1);
  EXPECT_EQ(errno, 1234);
  EXPECT_EQ(line.bytes(), 0u);
}

TEST(ReportDeathTest, DoubleFree) {
  EXPECT_REPORT(ReportDoubleFree(At(0x7f0010), 48, At(0x7f0000)),
                "double free of 0x7f0010 (class 48, slab 0x7f0000)");
}

TEST(ReportDeathTest, InteriorPointer) {
  EXPECT_REPORT(ReportInteriorPointer("free", At(0x7f0040), At(0x7f0030), 48),
                "free of 0x7f0040, which is 16 bytes inside the 48-byte block "
                "0x7f0030");
}

TEST(ReportDeathTest, ForeignPointer) {
  EXPECT_REPORT(ReportForeignPointer("realloc", At(0x10)),
                "realloc of 0x10, which Quarry did not allocate");
  static char global;
  LineBuffer address;
  address.AppendHex(&global);
  EXPECT_REPORT(ReportForeignPointer("free", &global),
                "free of " + TextOf(address) + ", which Quarry did not allocate");
}

TEST(ReportDeathTest, ForeignPointerWhereNothingIsMapped) {
  EXPECT_REPORT(ReportForeignPointer("free", At(0x10008)),
                "free of 0x10008, which Quarry did not allocate or has unmapped since");
}

TEST(ReportDeathTest, StackPointer) {
  const char* const p = static_cast<char*>(__builtin_frame_address(0)) + 64;
  LineBuffer address;
  address.AppendHex(p);
  EXPECT_REPORT(
      ReportUnmanagedPointer("free", p),
      "free of " + TextOf(address) + ", which is on the stack of this thread");
}

TEST(ReportDeathTest, MisalignedPointer) {
  EXPECT_REPORT(ReportMisalignedPointer("usable size", At(0x13)),
                "usable size of 0x13, which is not a multiple of 8");
}

TEST(ReportDeathTest, SizeMismatch) {
  EXPECT_REPORT(ReportSizeMismatch(At(0x10), 100, 48),
                "sized free of 0x10 as 100 bytes, but its block has 48 "
                "(QUARRY_OPTIONS=check_sizes:0 allows it)");
}

TEST(ReportDeathTest, FreedLargeBlock) {
  EXPECT_REPORT(ReportFreedLargeBlock("free", At(0x10000)),
                "free of 0x10000, a large block that is already free");
}

TEST(ReportDeathTest, CorruptLink) {
  EXPECT_REPORT(ReportCorruptLink(At(0x10)),
                "the free block 0x10 was written to after its free");
}

TEST(ReportDeathTest, CheckFailure) {
  EXPECT_REPORT(ReportCheckFailure("a == b", "arena/x.cc", 12),
                "check failed: a == b (arena/x.cc:12)");
}

TEST(ReportDeathTest, ChecksAreAlwaysOnAndDebugChecksInDebugBuilds) {
  QUARRY_CHECK(1 + 1 == 2);
  QUARRY_DCHECK(1 + 1 == 2);
  EXPECT_EXIT(QUARRY_CHECK(1 + 1 == 3), testing::KilledBySignal(SIGABRT),
              "quarry: check failed: 1 \\+ 1 == 3 \\(.*report_test.cc:");
  int evaluations = 0;
#ifdef NDEBUG
  QUARRY_DCHECK(++evaluations == 7);
#else
  EXPECT_EXIT(QUARRY_DCHECK(++evaluations == 7),
              testing::KilledBySignal(SIGABRT), "quarry: check failed: ");
#endif
  EXPECT_EQ(evaluations, 0);
}

}  // namespace
}  // namespace quarry
