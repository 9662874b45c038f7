// What the tests of the heap share.
#ifndef QUARRY_TESTS_ALLOC_HEAP_SUPPORT_H_
#define QUARRY_TESTS_ALLOC_HEAP_SUPPORT_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "alloc/heap.h"
#include "arena/filling.h"
#include "arena/process_arenas.h"
#include "arena/settings.h"
#include "gtest/gtest.h"

namespace quarry {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kInstrumented = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kInstrumented = true;
#else
inline constexpr bool kInstrumented = false;
#endif
#else
inline constexpr bool kInstrumented = false;
#endif

// Fewer steps where each takes many times as long.
constexpr size_t Steps(size_t steps) {
  return kInstrumented ? (steps + 9) / 10 : steps;
}

inline constexpr size_t kKiB = size_t{1} << 10;
inline constexpr size_t kMiB = size_t{1} << 20;

// A number that the compiler cannot know.
inline size_t Opaque(size_t number) {
  asm("" : "+r"(number));
  return number;
}

// malloc() as its callers have it: the fast path, and the slow one behind it.
inline char* Allocate(size_t bytes) {
  void* block = TryPop(bytes);
  if (block == nullptr) block = AllocateSlow(bytes);
  return static_cast<char*>(block);
}

inline bool IsAligned(const void* block, size_t alignment) {
  return reinterpret_cast<uintptr_t>(block) % alignment == 0;
}

inline bool AllBytesAre(const void* block, size_t bytes, int value) {
  const char* const first = static_cast<const char*>(block);
  return bytes == 0 || (first[0] == static_cast<char>(value) &&
                        memcmp(first, first + 1, bytes - 1) == 0);
}

// A content that shows when a block was moved, cut or written to by another:
// bytes that follow from `stamp` and their place, at both ends and at a few
// hundred places between them.
class Content {
 public:
  static void Write(void* block, size_t bytes, uint64_t stamp) {
    char* const first = static_cast<char*>(block);
    ForEachPlace(bytes, [&](size_t place) {
      first[place] = ByteAt(place, stamp);
      return true;
    });
  }

  // Whether the first `kept` of `bytes` bytes are as they were written.
  static bool IsIntact(const void* block, size_t bytes, uint64_t stamp,
                       size_t kept = ~size_t{0}) {
    const char* const first = static_cast<const char*>(block);
    return ForEachPlace(bytes, [&](size_t place) {
      return place >= kept || first[place] == ByteAt(place, stamp);
    });
  }

 private:
  static constexpr size_t kEnd = 128;

  static char ByteAt(size_t place, uint64_t stamp) {
    return static_cast<char>(((stamp + place) * 0x9e3779b97f4a7c15) >> 56);
  }

  template <typename Visit>
  static bool ForEachPlace(size_t bytes, Visit visit) {
    const size_t head = std::min(bytes, kEnd);
    const size_t tail = std::max(head, bytes - std::min(bytes, kEnd));
    for (size_t i = 0; i < head; ++i) {
      if (!visit(i)) return false;
    }
    const size_t stride = std::max<size_t>(61, bytes / 256);
    for (size_t i = head; i < tail; i += stride) {
      if (!visit(i)) return false;
    }
    for (size_t i = tail; i < bytes; ++i) {
      if (!visit(i)) return false;
    }
    return true;
  }
};

// Nothing is expected after this, whatever went before.
inline void ForgetWhatWasFilled() {
  settings.mmap_threshold_bytes = Settings().mmap_threshold_bytes.load();
  ReleaseMemory(0);
  while (filling_history.Expect(FillingHistory::kLeastBytes) == Filling::kFromLowEnd) {
  }
}

// The identities of statistics.h. Only while no other thread runs.
inline void ExpectBalanced(const HeapStatistics& s) {
  EXPECT_EQ(s.mapped_bytes, s.live_bytes + s.cached_bytes + s.slab_free_bytes +
                                s.arena_free_bytes + s.huge_cached_bytes +
                                s.metadata_bytes);
  EXPECT_EQ(s.live_bytes,
            s.live_small_bytes + s.live_medium_bytes + s.live_huge_bytes);
  EXPECT_GE(s.peak_mapped_bytes, s.mapped_bytes);
}

// One size in each room and on each side of each border between them.
inline constexpr size_t kSizes[] = {
    0,         1,         8,          9,          16,         17,
    100,       128,       129,        1000,       4096,       8192,
    8193,      12000,     16384,      16385,      32768,      100000,
    kMiB,      3 * kMiB,  4 * kMiB - 1, 4 * kMiB, 4 * kMiB + 1,
    9 * kMiB,  33 * kMiB};

}  // namespace quarry

#endif  // QUARRY_TESTS_ALLOC_HEAP_SUPPORT_H_
