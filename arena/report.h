#ifndef QUARRY_ARENA_REPORT_H_
#define QUARRY_ARENA_REPORT_H_

#include <cstddef>
#include <cstdint>

#include "absl/base/optimization.h"

namespace quarry {

// Writes all of `text` to `descriptor`, or as much as that takes. No signal comes of a pipe
// that nobody reads, and no thread is cancelled here. errno is preserved.
//
// Thread-safety: any thread. A SIGPIPE that another thread sends this one meanwhile may be
//   lost.
void WriteText(int descriptor, const char* text, size_t bytes);

// One line of text, built without allocating and written in one piece.
//
// Text beyond kCapacityBytes is cut off; a flushed line always ends in '\n'.
//
// Thread-safety: one thread; lives on its stack.
// Errors: none; what the descriptor refuses is lost. errno is preserved.
// Size: kCapacityBytes and a word.
class LineBuffer {
 public:
  static constexpr size_t kCapacityBytes = 512;

  LineBuffer& AppendText(const char* text);
  LineBuffer& AppendText(const char* text, size_t bytes);
  LineBuffer& AppendHex(uintptr_t value);  // 0x7f…, lower case.
  LineBuffer& AppendHex(const void* p) {
    return AppendHex(reinterpret_cast<uintptr_t>(p));
  }
  LineBuffer& AppendDecimal(uint64_t value);

  size_t bytes() const { return bytes_; }
  const char* text() const { return text_; }  // Not terminated.

  // Writes the line and a '\n' to `descriptor` and starts an empty line.
  void Flush(int descriptor = 2);

 private:
  size_t bytes_ = 0;
  char text_[kCapacityBytes];  // [0, bytes_) are set; one is kept for '\n'.
};

// One function for each misuse by the caller. Each writes one line to stderr
// and aborts.
//
// `call` is what the caller asked for, as it reads before "of": "free",
// "realloc", "usable size". Examples are the whole line, with addresses cut.
//
// Thread-safety: any thread, with any lock held; takes none, allocates nothing.

// "quarry: double free of 0x10 (class 48, slab 0x20), aborting"
[[noreturn]] void ReportDoubleFree(const void* p, size_t class_bytes,
                                   const void* slab);

// "quarry: free of 0x40, which is 16 bytes inside the 48-byte block 0x30,
// aborting"
[[noreturn]] void ReportInteriorPointer(const char* call, const void* p,
                                        const void* block_start,
                                        size_t block_bytes);

// "quarry: free of 0x10, which Quarry did not allocate, aborting"; where a block could
// be, but nothing is mapped, "... did not allocate or has unmapped since, aborting"
[[noreturn]] void ReportForeignPointer(const char* call, const void* p);

// The same, or, if p is not far above the caller's frame, "quarry: free of
// 0x10, which is on the stack of this thread, aborting". Requires that p is in
// none of Quarry's mappings, which may lie that close to a stack.
[[noreturn]] void ReportUnmanagedPointer(const char* call, const void* p);

// "quarry: free of 0x13, which is not a multiple of 8, aborting"
[[noreturn]] void ReportMisalignedPointer(const char* call, const void* p);

// "quarry: sized free of 0x10 as 100 bytes, but its block has 48
// (QUARRY_OPTIONS=check_sizes:0 allows it), aborting"
[[noreturn]] void ReportSizeMismatch(const void* p, size_t given_bytes,
                                     size_t block_bytes);

// "quarry: free of 0x10, a large block that is already free, aborting"
[[noreturn]] void ReportFreedLargeBlock(const char* call, const void* p);

// "quarry: the free block 0x10 was written to after its free, aborting"
[[noreturn]] void ReportCorruptLink(const void* p);

// "quarry: the system has pages of 131072 bytes and Quarry is made for at most
// 65536, aborting"
[[noreturn]] void ReportUnsupportedPages(size_t page_bytes,
                                         size_t largest_bytes);

// "quarry: check failed: a == b (arena/arena.cc:12), aborting"
[[noreturn]] void ReportCheckFailure(const char* expression, const char* file,
                                     int line);

}  // namespace quarry

// A broken invariant of our own, or an impossible answer of the OS.
#define QUARRY_CHECK(condition)                                     \
  do {                                                              \
    if (ABSL_PREDICT_FALSE(!(condition))) {                         \
      ::quarry::ReportCheckFailure(#condition, __FILE__, __LINE__); \
    }                                                               \
  } while (false)

// The same in debug builds; elsewhere compiled and never evaluated.
#ifdef NDEBUG
#define QUARRY_DCHECK(condition)        \
  do {                                  \
    if (false) QUARRY_CHECK(condition); \
  } while (false)
#else
#define QUARRY_DCHECK(condition) QUARRY_CHECK(condition)
#endif

#endif  // QUARRY_ARENA_REPORT_H_
