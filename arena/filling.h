// What a program does with its large blocks.
#ifndef QUARRY_ARENA_FILLING_H_
#define QUARRY_ARENA_FILLING_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "arena/page_source.h"

namespace quarry {

// What the program will do with memory, or has done.
enum class Filling : uint8_t {
  kUnknown,     // It may touch a small part of it.
  kFromLowEnd,  // It touches it from the low end on, and likely all of it.
};

// Guesses what a program will do with a large block by what it did with the last.
//
// A huge page is one fault in place of 512, and one entry in place of 512 where addresses
// are translated; but the first touch makes all of it resident. So it is for blocks that
// will be filled, which nobody tells an allocator. A program that filled a block of some
// MiB will fill the next, as a rule: a table or a vector that grows, a matrix.
//
//   the program     allocates A   fills A   allocates B              frees A
//   this            notes A                 looks at A, notes B      looks at A
//   B                                       is on huge pages
//
// To look is to ask the system whether one small page in each eighth of the block is
// resident. That tells nothing of a block on huge pages, nor of one that was given out
// with pages that somebody else had touched. So such a block is not noted; and where the
// program gives a block back, which it then does not write to, its bytes are read as
// well: a page of which no byte was ever written to is zero.
//
// A block that was seen filled raises the credit to four times its bytes; one that was seen
// unfilled takes four times its bytes away, and one that is expected to be filled takes its
// own. So of all guesses the wrong ones make no more resident than that: what grows by
// doubling is allocated when the half of it is there, and the fourth of it was seen.
//
// Thread-safety: any thread. Threads that allocate at once may ask about each other's
//   blocks, or about what is no longer mapped: a guess is all that it is. Only
//   Observe() reads memory, which the caller owns.
// Ordering: relaxed, for the same reason.
// Cost: two stores for a block; one to eight system calls where one is looked at.
class FillingHistory {
 public:
  constexpr explicit FillingHistory(PageSource& source) : source_(source) {}
  FillingHistory(const FillingHistory&) = delete;
  FillingHistory& operator=(const FillingHistory&) = delete;

  // Smaller blocks are not expected to be filled.
  static constexpr size_t kLeastBytes = size_t{4} << 20;

  // What is expected to be filled of each byte that was.
  static constexpr size_t kCreditOfByte = 4;

  // Smaller blocks tell nothing, and are not looked at.
  static constexpr size_t kLeastToldBytes = kLeastBytes / kCreditOfByte;

  // What the program will do with a new block of `bytes` bytes. Always unknown where
  // settings want no huge pages for it, and above the soft limit.
  [[nodiscard]] Filling Expect(size_t bytes);

  // Nothing came of an Expect(bytes) that was kFromLowEnd: there was no block, or one with
  // pages that somebody else had touched.
  void TakeBack(size_t bytes) { credit_bytes_.fetch_add(bytes, std::memory_order_relaxed); }

  // [start, start + bytes), whole pages, was allocated, or is a block that has grown: of
  // which the program alone touches pages, and small ones.
  void NoteAllocated(void* start, size_t bytes) {
    if (bytes < kLeastToldBytes) return;
    newest_.store(start, std::memory_order_relaxed);
    newest_bytes_.store(bytes, std::memory_order_relaxed);
  }

  // Looks at [start, start + bytes), whole pages that were zero when the program got
  // them, which it is about to give back or to extend, and forgets it.
  Filling Observe(void* start, size_t bytes);

 private:
  enum class Look { kAtResidence, kAtContent };

  bool IsFilled(char* start, size_t bytes, Look look) const;
  bool IsTouched(char* page, Look look) const;
  void Credit(size_t bytes, bool is_filled);

  PageSource& source_;
  std::atomic<void*> newest_{nullptr};
  std::atomic<size_t> newest_bytes_{0};
  // What is still expected to be filled.
  std::atomic<size_t> credit_bytes_{0};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_FILLING_H_
