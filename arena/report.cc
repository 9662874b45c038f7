#include "arena/report.h"

#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "arena/errno_saver.h"

namespace quarry {
namespace {

// What the main thread's stack may grow to by default. Other stacks are
// smaller; a heap address just above one would be called a stack's.
constexpr uintptr_t kStackBytes = 8 << 20;

// Whether p lies in a frame of this thread's callers.
bool IsOnThisStack(const void* p) {
  const uintptr_t here =
      reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  return reinterpret_cast<uintptr_t>(p) - here < kStackBytes;
}

// Whether p is where a mapping could be, and is none.
bool MayHaveBeenUnmapped(const void* p) {
  constexpr uintptr_t kFirstBytes = 64 * 1024;  // vm.mmap_min_addr
  constexpr uintptr_t kUserBytes = uintptr_t{1} << 47;
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  if (address < kFirstBytes || address >= kUserBytes) return false;
  const auto page_bytes = static_cast<uintptr_t>(getauxval(AT_PAGESZ));
  unsigned char is_resident;
  return mincore(reinterpret_cast<void*>(address & -page_bytes), 1, &is_resident) != 0 &&
         errno == ENOMEM;
}

[[noreturn]] void Abort(LineBuffer& line) {
  line.AppendText(", aborting").Flush();
  abort();
}

}  // namespace

void WriteText(int descriptor, const char* text, size_t bytes) {
  ErrnoSaver saver;
  sigset_t pipe_signal, mask, pending;
  sigemptyset(&pipe_signal);
  sigemptyset(&pending);
  sigaddset(&pipe_signal, SIGPIPE);
  // Refused only by a filter of system calls.
  const bool is_blocked = pthread_sigmask(SIG_BLOCK, &pipe_signal, &mask) == 0;
  sigpending(&pending);
  ssize_t written = 0;
  while (bytes > 0) {
    // libc's write() is where a thread may be cancelled.
    written = syscall(SYS_write, descriptor, text, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    text += written;
    bytes -= static_cast<size_t>(written);
  }
  if (is_blocked && written < 0 && errno == EPIPE && !sigismember(&pending, SIGPIPE)) {
    const timespec at_once = {};
    syscall(SYS_rt_sigtimedwait, &pipe_signal, nullptr, &at_once, _NSIG / 8);
  }
  if (is_blocked) pthread_sigmask(SIG_SETMASK, &mask, nullptr);
}

LineBuffer& LineBuffer::AppendText(const char* text, size_t bytes) {
  const size_t room = kCapacityBytes - 1 - bytes_;
  if (bytes > room) bytes = room;
  memcpy(text_ + bytes_, text, bytes);
  bytes_ += bytes;
  return *this;
}

LineBuffer& LineBuffer::AppendText(const char* text) {
  return AppendText(text, strlen(text));
}

LineBuffer& LineBuffer::AppendHex(uintptr_t value) {
  char digits[2 + 2 * sizeof(value)];
  char* const end = digits + sizeof(digits);
  char* first = end;
  do {
    *--first = "0123456789abcdef"[value % 16];
    value /= 16;
  } while (value != 0);
  *--first = 'x';
  *--first = '0';
  return AppendText(first, static_cast<size_t>(end - first));
}

LineBuffer& LineBuffer::AppendDecimal(uint64_t value) {
  char digits[20];  // 2^64 - 1 has 20.
  char* const end = digits + sizeof(digits);
  char* first = end;
  do {
    *--first = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  return AppendText(first, static_cast<size_t>(end - first));
}

void LineBuffer::Flush(int descriptor) {
  text_[bytes_++] = '\n';
  WriteText(descriptor, text_, bytes_);
  bytes_ = 0;
}

void ReportDoubleFree(const void* p, size_t class_bytes, const void* slab) {
  LineBuffer line;
  line.AppendText("quarry: double free of ").AppendHex(p);
  line.AppendText(" (class ").AppendDecimal(class_bytes);
  line.AppendText(", slab ").AppendHex(slab).AppendText(")");
  Abort(line);
}

void ReportInteriorPointer(const char* call, const void* p,
                           const void* block_start, size_t block_bytes) {
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(block_start);
  LineBuffer line;
  line.AppendText("quarry: ").AppendText(call).AppendText(" of ").AppendHex(p);
  line.AppendText(", which is ").AppendDecimal(offset);
  line.AppendText(" bytes inside the ").AppendDecimal(block_bytes);
  line.AppendText("-byte block ").AppendHex(block_start);
  Abort(line);
}

void ReportForeignPointer(const char* call, const void* p) {
  LineBuffer line;
  line.AppendText("quarry: ").AppendText(call).AppendText(" of ").AppendHex(p);
  line.AppendText(", which Quarry did not allocate");
  // As it has with a large block that is freed twice.
  if (MayHaveBeenUnmapped(p)) line.AppendText(" or has unmapped since");
  Abort(line);
}

void ReportUnmanagedPointer(const char* call, const void* p) {
  if (!IsOnThisStack(p)) ReportForeignPointer(call, p);
  LineBuffer line;
  line.AppendText("quarry: ").AppendText(call).AppendText(" of ").AppendHex(p);
  line.AppendText(", which is on the stack of this thread");
  Abort(line);
}

void ReportMisalignedPointer(const char* call, const void* p) {
  LineBuffer line;
  line.AppendText("quarry: ").AppendText(call).AppendText(" of ").AppendHex(p);
  line.AppendText(", which is not a multiple of 8");
  Abort(line);
}

void ReportSizeMismatch(const void* p, size_t given_bytes, size_t block_bytes) {
  LineBuffer line;
  line.AppendText("quarry: sized free of ").AppendHex(p);
  line.AppendText(" as ").AppendDecimal(given_bytes);
  line.AppendText(" bytes, but its block has ").AppendDecimal(block_bytes);
  // Most who see this run a program that somebody else has written.
  line.AppendText(" (QUARRY_OPTIONS=check_sizes:0 allows it)");
  Abort(line);
}

void ReportFreedLargeBlock(const char* call, const void* p) {
  LineBuffer line;
  line.AppendText("quarry: ").AppendText(call).AppendText(" of ").AppendHex(p);
  line.AppendText(", a large block that is already free");
  Abort(line);
}

void ReportCorruptLink(const void* p) {
  LineBuffer line;
  line.AppendText("quarry: the free block ").AppendHex(p);
  line.AppendText(" was written to after its free");
  Abort(line);
}

void ReportUnsupportedPages(size_t page_bytes, size_t largest_bytes) {
  LineBuffer line;
  line.AppendText("quarry: the system has pages of ").AppendDecimal(page_bytes);
  line.AppendText(" bytes and Quarry is made for at most ");
  line.AppendDecimal(largest_bytes);
  Abort(line);
}

void ReportCheckFailure(const char* expression, const char* file, int line) {
  LineBuffer text;
  text.AppendText("quarry: check failed: ").AppendText(expression);
  text.AppendText(" (").AppendText(file).AppendText(":");
  text.AppendDecimal(static_cast<uint64_t>(line)).AppendText(")");
  Abort(text);
}

}  // namespace quarry
