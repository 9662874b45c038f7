// What every set of malloc-like calls of Quarry owes its callers: the same
// tests for the prefixed calls, libc's names and the layer under both.
//
// A test file that includes this instantiates MallocContract with its Surface.
#ifndef QUARRY_TESTS_ALLOC_MALLOC_CONTRACT_H_
#define QUARRY_TESTS_ALLOC_MALLOC_CONTRACT_H_

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <ostream>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace quarry {

struct Surface {
  const char* name;
  void* (*malloc)(size_t);
  void (*free)(void*);
  void* (*calloc)(size_t, size_t);
  void* (*realloc)(void*, size_t);
  void* (*reallocarray)(void*, size_t, size_t);
  void* (*reallocf)(void*, size_t);
  void* (*memalign)(size_t, size_t);
  void* (*aligned_alloc)(size_t, size_t);
  int (*posix_memalign)(void**, size_t, size_t);
  void* (*valloc)(size_t);
  void* (*pvalloc)(size_t);
  size_t (*usable_size)(void*);
  void (*free_sized)(void*, size_t);
  void (*free_aligned_sized)(void*, size_t, size_t);
};

inline std::ostream& operator<<(std::ostream& out, const Surface& surface) {
  return out << surface.name;
}

// A number that the compiler cannot know, for sizes that it would warn about.
inline size_t Opaque(size_t number) {
  asm("" : "+r"(number));
  return number;
}

inline bool IsAligned(const void* block, size_t alignment) {
  return reinterpret_cast<uintptr_t>(block) % alignment == 0;
}

inline bool AllBytesAre(const void* block, size_t bytes, unsigned char value) {
  const auto* first = static_cast<const unsigned char*>(block);
  return std::all_of(first, first + bytes,
                     [value](unsigned char byte) { return byte == value; });
}

class MallocContract : public testing::TestWithParam<Surface> {
 protected:
  const Surface& call_ = GetParam();

  // `block`, a result, is null because there is no memory.
  static void ExpectNoMemory(const void* block) {
    const int error = errno;
    EXPECT_EQ(block, nullptr);
    EXPECT_EQ(error, ENOMEM);
  }

  void SetUp() override { errno = 0; }

  static constexpr size_t kTooMany[] = {
      size_t{PTRDIFF_MAX} + 1, SIZE_MAX - 4096, SIZE_MAX - 1, SIZE_MAX};
  static constexpr size_t kSizes[] = {0,    1,     7,     8,      16,      17,
                                      100,  1000,  1024,  4000,   8192,    8193,
                                      16384, 16385, 65536, 300000, 5000000};
};

TEST_P(MallocContract, EveryBlockIsAlignedTo16AndHoldsWhatWasAsked) {
  for (const size_t bytes : kSizes) {
    void* block = call_.malloc(bytes);
    ASSERT_NE(block, nullptr) << bytes;
    EXPECT_TRUE(IsAligned(block, 16)) << bytes;
    EXPECT_GE(call_.usable_size(block), bytes);
    memset(block, 0x5a, call_.usable_size(block));
    call_.free(block);
  }
}

TEST_P(MallocContract, BlocksOfNoBytesAreUnique) {
  std::set<void*> blocks;
  for (int i = 0; i < 100; ++i) blocks.insert(call_.malloc(0));
  for (int i = 0; i < 100; ++i) blocks.insert(call_.calloc(0, 8));
  for (int i = 0; i < 100; ++i) blocks.insert(call_.memalign(64, 0));
  EXPECT_EQ(blocks.size(), 300u);
  EXPECT_EQ(blocks.count(nullptr), 0u);
  for (void* block : blocks) call_.free(block);
}

TEST_P(MallocContract, MoreThanPtrdiffMaxIsNoMemory) {
  for (const size_t bytes : kTooMany) {
    const size_t too_many = Opaque(bytes);
    errno = 0;
    ExpectNoMemory(call_.malloc(too_many));
    errno = 0;
    ExpectNoMemory(call_.calloc(1, too_many));
    errno = 0;
    ExpectNoMemory(call_.realloc(nullptr, too_many));
    errno = 0;
    ExpectNoMemory(call_.memalign(4096, too_many));
    errno = 0;
    ExpectNoMemory(call_.aligned_alloc(8, too_many));
    errno = 0;
    ExpectNoMemory(call_.valloc(too_many));
    errno = 0;
    ExpectNoMemory(call_.pvalloc(too_many));
  }
}

TEST_P(MallocContract, MoreThanTheAddressSpaceIsNoMemory) {
  const size_t too_many = Opaque(PTRDIFF_MAX);
  ExpectNoMemory(call_.malloc(too_many));
  errno = 0;
  ExpectNoMemory(call_.calloc(too_many / 8, 8));
  errno = 0;
  ExpectNoMemory(call_.memalign(64, too_many));
}

TEST_P(MallocContract, ErrnoIsUntouchedBySuccess) {
  errno = EDOM;
  void* block = call_.malloc(100);
  block = call_.realloc(block, 100000);
  call_.free(block);
  call_.free(call_.calloc(10, 10));
  call_.free(call_.memalign(4096, 5000000));
  EXPECT_EQ(errno, EDOM);
}

TEST_P(MallocContract, FreeKeepsErrno) {
  std::vector<void*> blocks;
  for (const size_t bytes : kSizes) blocks.push_back(call_.malloc(bytes));
  errno = EDOM;
  for (void* block : blocks) call_.free(block);
  call_.free(nullptr);
  call_.free_sized(nullptr, 8);
  call_.free_aligned_sized(nullptr, 64, 8);
  EXPECT_EQ(errno, EDOM);
}

TEST_P(MallocContract, CallocIsZeroOnUsedMemoryToo) {
  for (const size_t bytes : kSizes) {
    for (int round = 0; round < 3; ++round) {
      void* block = call_.calloc(1, bytes);
      ASSERT_NE(block, nullptr);
      EXPECT_TRUE(AllBytesAre(block, bytes, 0)) << bytes;
      memset(block, 0xff, call_.usable_size(block));
      call_.free(block);
    }
  }
}

TEST_P(MallocContract, ProductsThatOverflowAreNoMemory) {
  ExpectNoMemory(call_.calloc(Opaque(SIZE_MAX / 2), 3));
  errno = 0;
  ExpectNoMemory(call_.calloc(size_t{1} << 32, Opaque(size_t{1} << 32)));
  errno = 0;
  ExpectNoMemory(call_.reallocarray(nullptr, Opaque(SIZE_MAX / 2), 3));

  void* block = call_.malloc(10);
  memset(block, 7, 10);
  errno = 0;
  ExpectNoMemory(
      call_.reallocarray(block, size_t{1} << 32, Opaque(size_t{1} << 32)));
  EXPECT_TRUE(AllBytesAre(block, 10, 7));
  call_.free(block);
}

TEST_P(MallocContract, ReallocKeepsTheContent) {
  for (const size_t before : kSizes) {
    for (const size_t after : kSizes) {
      if (after == 0) continue;
      void* block = call_.malloc(before);
      memset(block, 0x3c, before);
      block = call_.realloc(block, after);
      ASSERT_NE(block, nullptr);
      EXPECT_GE(call_.usable_size(block), after);
      EXPECT_TRUE(AllBytesAre(block, std::min(before, after), 0x3c))
          << before << " to " << after;
      memset(block, 0x3d, after);
      call_.free(block);
    }
  }
}

TEST_P(MallocContract, ReallocOfNullIsMalloc) {
  void* block = call_.realloc(nullptr, 50);
  ASSERT_NE(block, nullptr);
  call_.free(block);
  block = call_.realloc(nullptr, 0);
  ASSERT_NE(block, nullptr);
  call_.free(block);
  block = call_.reallocarray(nullptr, 5, 10);
  ASSERT_NE(block, nullptr);
  EXPECT_GE(call_.usable_size(block), 50u);
  call_.free(block);
}

TEST_P(MallocContract, ReallocToNoBytesFreesWithoutAnError) {
  errno = EDOM;
  EXPECT_EQ(call_.realloc(call_.malloc(50), 0), nullptr);
  EXPECT_EQ(call_.realloc(call_.malloc(5000000), 0), nullptr);
  EXPECT_EQ(call_.reallocarray(call_.malloc(50), 0, 8), nullptr);
  EXPECT_EQ(call_.reallocf(call_.malloc(50), 0), nullptr);
  EXPECT_EQ(errno, EDOM);
}

TEST_P(MallocContract, AFailedReallocLeavesTheBlock) {
  for (const size_t too_many : {size_t{PTRDIFF_MAX}, SIZE_MAX}) {
    for (const size_t bytes : {size_t{20}, size_t{100000}, size_t{5000000}}) {
      void* block = call_.malloc(bytes);
      memset(block, 9, bytes);
      errno = 0;
      ExpectNoMemory(call_.realloc(block, Opaque(too_many)));
      EXPECT_TRUE(AllBytesAre(block, bytes, 9));
      call_.free(block);
    }
  }
}

TEST_P(MallocContract, ReallocfFreesTheBlockWhenItFails) {
  void* block = call_.malloc(40);
  ExpectNoMemory(call_.reallocf(block, Opaque(SIZE_MAX)));
  // Its place is free again: it comes back before long.
  std::vector<void*> blocks;
  bool again = false;
  for (int i = 0; i < 100000 && !again; ++i) {
    blocks.push_back(call_.malloc(40));
    again = blocks.back() == block;
  }
  EXPECT_TRUE(again);
  for (void* other : blocks) call_.free(other);

  block = call_.reallocf(nullptr, 10);
  block = call_.reallocf(block, 1000);
  EXPECT_GE(call_.usable_size(block), 1000u);
  call_.free(block);
}

TEST_P(MallocContract, EveryAlignmentIsHonouredAndFreedInEveryWay) {
  for (size_t alignment = 1; alignment <= size_t{1} << 30; alignment *= 2) {
    for (const size_t bytes :
         {size_t{0}, size_t{1}, alignment / 2, alignment, alignment + 1,
          size_t{3000}, size_t{16385}, size_t{40000}, size_t{5} << 20}) {
      if (bytes > size_t{1} << 29) continue;
      for (int way = 0; way < 4; ++way) {
        void* block = call_.memalign(alignment, bytes);
        ASSERT_NE(block, nullptr) << alignment << ", " << bytes;
        ASSERT_TRUE(IsAligned(block, alignment)) << alignment << ", " << bytes;
        ASSERT_GE(call_.usable_size(block), bytes);
        if (bytes != 0) {
          static_cast<char*>(block)[0] = 1;
          static_cast<char*>(block)[bytes - 1] = 1;
        }
        switch (way) {
          case 0:
            call_.free(block);
            break;
          case 1:
            call_.free_aligned_sized(block, alignment, bytes);
            break;
          case 2:
            EXPECT_EQ(call_.realloc(block, 0), nullptr);
            break;
          default:
            block = call_.realloc(block, 100);
            ASSERT_NE(block, nullptr);
            EXPECT_TRUE(bytes == 0 || static_cast<char*>(block)[0] == 1);
            call_.free_sized(block, 100);
            break;
        }
      }
    }
  }
}

TEST_P(MallocContract, ABlockOfManyBytesAtALargeAlignment) {
  constexpr size_t kGibibyte = size_t{1} << 30;
  void* block = call_.memalign(kGibibyte, kGibibyte + 1);
  ASSERT_NE(block, nullptr);
  EXPECT_TRUE(IsAligned(block, kGibibyte));
  static_cast<char*>(block)[kGibibyte] = 1;
  call_.free_aligned_sized(block, kGibibyte, kGibibyte + 1);
}

TEST_P(MallocContract, MemalignRoundsItsAlignmentUp) {
  for (const auto& align : {call_.memalign, call_.aligned_alloc}) {
    struct Case {
      size_t alignment, bytes, rounded;
    };
    for (const Case& c : {Case{0, 10, 16}, Case{33, 10, 64}, Case{4097, 10, 8192},
                          Case{33, 40000, 64}, Case{3000, 40000, 4096}}) {
      void* const block = align(Opaque(c.alignment), c.bytes);
      EXPECT_TRUE(block != nullptr && IsAligned(block, c.rounded))
          << c.alignment << ", " << c.bytes;
      call_.free(block);
    }
  }
}

TEST_P(MallocContract, AnAlignmentThatCannotBeRoundedUpIsInvalid) {
  EXPECT_EQ(call_.memalign(Opaque(SIZE_MAX / 2 + 2), 10), nullptr);
  EXPECT_EQ(errno, EINVAL);
  errno = 0;
  EXPECT_EQ(call_.aligned_alloc(Opaque(SIZE_MAX), 10), nullptr);
  EXPECT_EQ(errno, EINVAL);
  errno = 0;
  ExpectNoMemory(call_.memalign(Opaque(SIZE_MAX / 2 + 1), 10));
}

TEST_P(MallocContract, PosixMemalignTellsItsErrors) {
  char untouched;
  for (const size_t alignment : {0, 1, 2, 4, 12, 24, 33, 4097}) {
    void* block = &untouched;
    EXPECT_EQ(call_.posix_memalign(&block, Opaque(alignment), 10), EINVAL);
    EXPECT_EQ(block, &untouched);
  }
  void* block = &untouched;
  EXPECT_EQ(call_.posix_memalign(&block, 64, Opaque(SIZE_MAX)), ENOMEM);
  EXPECT_EQ(call_.posix_memalign(&block, Opaque(SIZE_MAX / 2 + 1), 8), ENOMEM);
  EXPECT_EQ(block, &untouched);

  for (size_t alignment = sizeof(void*); alignment <= 65536; alignment *= 2) {
    ASSERT_EQ(call_.posix_memalign(&block, alignment, 100), 0);
    EXPECT_TRUE(IsAligned(block, alignment));
    call_.free(block);
  }
}

TEST_P(MallocContract, VallocAndPvallocStartAtAPage) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* block = call_.valloc(10);
  EXPECT_TRUE(block != nullptr && IsAligned(block, page));
  call_.free(block);
  for (const size_t bytes : {size_t{1}, page - 1, page, page + 1}) {
    block = call_.pvalloc(bytes);
    EXPECT_TRUE(block != nullptr && IsAligned(block, page));
    EXPECT_GE(call_.usable_size(block), (bytes + page - 1) / page * page);
    call_.free(block);
  }
  block = call_.pvalloc(0);
  EXPECT_TRUE(block != nullptr && IsAligned(block, page));
  call_.free(block);
}

TEST_P(MallocContract, NullHasNoUsableBytes) {
  EXPECT_EQ(call_.usable_size(nullptr), 0u);
}

TEST_P(MallocContract, SizedFreeTakesEverySizeThatWasAsked) {
  for (size_t bytes = 0; bytes <= 70000; bytes += bytes < 3000 ? 1 : 997) {
    call_.free_sized(call_.malloc(bytes), bytes);
  }
  call_.free_sized(call_.malloc(5000000), 5000000);
}

TEST_P(MallocContract, SizedFreeAfterReallocTakesTheNewSize) {
  for (const size_t before : kSizes) {
    for (const size_t after : kSizes) {
      if (after == 0) continue;
      void* block = call_.realloc(call_.malloc(before), after);
      ASSERT_NE(block, nullptr);
      call_.free_sized(block, after);
    }
  }
}

TEST_P(MallocContract, SmallOverAlignedBlocksAreFreedWithTheirSize) {
  for (size_t alignment = 16; alignment <= 8192; alignment *= 2) {
    for (size_t bytes = 0; bytes <= 9000; bytes += bytes < 600 ? 1 : 100) {
      void* block = call_.aligned_alloc(alignment, bytes);
      ASSERT_TRUE(IsAligned(block, alignment));
      call_.free_aligned_sized(block, alignment, bytes);
    }
  }
}

}  // namespace quarry

#endif  // QUARRY_TESTS_ALLOC_MALLOC_CONTRACT_H_
