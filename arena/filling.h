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
// MiB will fill the next, as a rule: a table or a vector that grows, a matrix. Of a block
// that it does not fill a few pages are resident, and the system can tell.
//
//   the program     allocates A   fills A   allocates B              frees A
//   this            notes A                 looks at A, notes B      looks at A
//   B                                       is on huge pages
//
// Thread-safety: any thread. Threads that allocate at once may look at each other's
//   blocks, or at what is no longer mapped: a guess is all that it is.
// Ordering: relaxed, for the same reason.
// Cost: two stores for a block, and one system call where it is not filled, eight where it
//   is, each time one is looked at.
class FillingHistory {
 public:
  constexpr explicit FillingHistory(PageSource& source) : source_(source) {}
  FillingHistory(const FillingHistory&) = delete;
  FillingHistory& operator=(const FillingHistory&) = delete;

  // Of smaller blocks nothing is expected.
  static constexpr size_t kLeastBytes = size_t{4} << 20;

  // How many times as large the next may be that is expected to be filled, too. What
  // grows by doubling is allocated beside its half.
  static constexpr size_t kMostGrowth = 4;

  // Smaller blocks tell nothing, and are not looked at.
  static constexpr size_t kLeastToldBytes = kLeastBytes / kMostGrowth;

  // What the program will do with a new block of `bytes` bytes. Always unknown where
  // settings want no huge pages for it, and above the soft limit.
  [[nodiscard]] Filling Expect(size_t bytes);

  // [start, start + bytes), whole pages, was allocated, or is a block that has grown.
  void NoteAllocated(void* start, size_t bytes) {
    if (bytes < kLeastToldBytes) return;
    newest_.store(start, std::memory_order_relaxed);
    newest_bytes_.store(bytes, std::memory_order_relaxed);
  }

  // Looks at what the program has of [start, start + bytes), whole pages, which it is
  // about to give back or to extend, and forgets it.
  Filling Observe(void* start, size_t bytes);

 private:
  Filling LookAt(void* start, size_t bytes);

  PageSource& source_;
  std::atomic<void*> newest_{nullptr};
  std::atomic<size_t> newest_bytes_{0};
  // Of what was looked at last, 0 if it was not filled.
  std::atomic<size_t> filled_bytes_{0};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_FILLING_H_
