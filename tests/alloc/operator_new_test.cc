// Linked with //alloc:malloc: operator new is Quarry's in this process.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "alloc/quarry.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/statistics_now.h"

// P0901, as LLVM calls it; no header has it.
extern "C" {
struct __sized_ptr_t {
  void* p;
  size_t n;
};
enum class __hot_cold_t : uint8_t;
__sized_ptr_t __size_returning_new(size_t bytes);
__sized_ptr_t __size_returning_new_aligned(size_t bytes,
                                           std::align_val_t alignment);
__sized_ptr_t __size_returning_new_hot_cold(size_t bytes, __hot_cold_t hot);
__sized_ptr_t __size_returning_new_aligned_hot_cold(
    size_t bytes, std::align_val_t alignment, __hot_cold_t hot);
}

namespace quarry {
namespace {

using std::align_val_t;
using std::nothrow;

// Its thread-local storage would count as live.
const bool no_thread = (settings.maintenance = false, true);

size_t Opaque(size_t number) {
  asm("" : "+r"(number));
  return number;
}

const size_t kTooMany = Opaque(size_t{1} << 62);

bool IsAligned(const void* block, size_t alignment) {
  return reinterpret_cast<uintptr_t>(block) % alignment == 0;
}

class OperatorNew : public testing::Test {
 protected:
  ~OperatorNew() override { std::set_new_handler(nullptr); }
};

TEST_F(OperatorNew, EveryFormIsQuarrys) {
  for (const size_t bytes : {0, 1, 24, 100, 5000, 100000, 5000000}) {
    for (void* block : {
             ::operator new(bytes),
             ::operator new[](bytes),
             ::operator new(bytes, nothrow),
             ::operator new[](bytes, nothrow),
             ::operator new(bytes, align_val_t{64}),
             ::operator new[](bytes, align_val_t{64}),
             ::operator new(bytes, align_val_t{64}, nothrow),
             ::operator new[](bytes, align_val_t{64}, nothrow),
         }) {
      ASSERT_NE(block, nullptr);
      EXPECT_TRUE(IsAligned(block, 16));
      EXPECT_GE(quarry_malloc_usable_size(block), bytes);
      memset(block, 1, bytes);
      quarry_free(block);
    }
  }
}

TEST_F(OperatorNew, EveryAlignmentIsHonoured) {
  for (size_t alignment = 1; alignment <= size_t{1} << 30; alignment *= 2) {
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{100}, alignment}) {
      void* block = ::operator new(bytes, align_val_t{alignment});
      EXPECT_TRUE(IsAligned(block, alignment)) << bytes << ", " << alignment;
      ::operator delete(block, bytes, align_val_t{alignment});
      block = ::operator new(bytes, align_val_t{alignment}, nothrow);
      EXPECT_TRUE(IsAligned(block, alignment)) << bytes << ", " << alignment;
      ::operator delete(block, align_val_t{alignment});
    }
  }
}

TEST_F(OperatorNew, NoBlockIsLostWithAnyAlignment) {
  std::vector<void*> blocks(100);
  for (size_t alignment = 1; alignment <= size_t{8192}; alignment *= 2) {
    const align_val_t aligned{alignment};
    for (const size_t bytes : {100, 3000, 5000, 20000, 60000, 70000}) {
      // What the test itself keeps is there.
      EXPECT_GT(LiveBytes(), 0u);
      const size_t live_bytes = LiveBytes();
      for (void*& block : blocks) block = ::operator new(bytes, aligned);
      for (int round = 0; round < 10; ++round) {
        for (size_t i = 0; i < blocks.size(); i += 3) ::operator delete(blocks[i], aligned);
        for (size_t i = 0; i < blocks.size(); i += 3) {
          blocks[i] = (round & 1) == 0 ? ::operator new(bytes, aligned)
                                       : ::operator new(bytes, aligned, nothrow);
        }
      }
      for (void* block : blocks) ::operator delete(block, bytes, aligned);
      ASSERT_EQ(LiveBytes(), live_bytes) << bytes << ", " << alignment;
    }
  }
  quarry_verify();
}

TEST_F(OperatorNew, AnAlignmentThatIsNoPowerOfTwoIsRefused) {
  for (const size_t alignment : {0, 3, 24, 4097}) {
    const align_val_t bad{Opaque(alignment)};
    EXPECT_THROW((void)::operator new(8, bad), std::bad_alloc);
    EXPECT_EQ(::operator new(8, bad, nothrow), nullptr);
  }
}

TEST_F(OperatorNew, ThrowsWhenThereIsNoMemory) {
  EXPECT_THROW((void)::operator new(kTooMany), std::bad_alloc);
  EXPECT_THROW((void)::operator new[](kTooMany), std::bad_alloc);
  EXPECT_THROW((void)::operator new(SIZE_MAX - Opaque(0)), std::bad_alloc);
  EXPECT_THROW((void)::operator new(kTooMany, align_val_t{64}), std::bad_alloc);
  EXPECT_THROW((void)::operator new[](kTooMany, align_val_t{64}),
               std::bad_alloc);
  EXPECT_THROW(std::string(kTooMany, 'x'), std::bad_alloc);
}

TEST_F(OperatorNew, NothrowFormsReturnNullWhenThereIsNoMemory) {
  EXPECT_EQ(::operator new(kTooMany, nothrow), nullptr);
  EXPECT_EQ(::operator new[](kTooMany, nothrow), nullptr);
  EXPECT_EQ(::operator new(kTooMany, align_val_t{64}, nothrow), nullptr);
  EXPECT_EQ(::operator new[](kTooMany, align_val_t{64}, nothrow), nullptr);
}

int handler_calls = 0;

TEST_F(OperatorNew, CallsTheHandlerUntilItGivesUp) {
  handler_calls = 0;
  std::set_new_handler([] {
    if (++handler_calls == 3) std::set_new_handler(nullptr);
  });
  EXPECT_THROW((void)::operator new(kTooMany), std::bad_alloc);
  EXPECT_EQ(handler_calls, 3);

  handler_calls = 0;
  std::set_new_handler([] {
    if (++handler_calls == 3) std::set_new_handler(nullptr);
  });
  EXPECT_EQ(::operator new(kTooMany, align_val_t{64}, nothrow), nullptr);
  EXPECT_EQ(handler_calls, 3);
}

TEST_F(OperatorNew, WhatTheHandlerThrowsPassesThrough) {
  std::set_new_handler([] { throw std::out_of_range("handler"); });
  EXPECT_THROW((void)::operator new(kTooMany), std::out_of_range);
  EXPECT_THROW((void)::operator new(kTooMany, align_val_t{64}),
               std::out_of_range);
}

TEST_F(OperatorNew, NothrowFormsReturnNullWhenTheHandlerThrows) {
  std::set_new_handler([] { throw std::out_of_range("handler"); });
  EXPECT_EQ(::operator new(kTooMany, nothrow), nullptr);
  EXPECT_EQ(::operator new[](kTooMany, nothrow), nullptr);
  EXPECT_EQ(::operator new(kTooMany, align_val_t{64}, nothrow), nullptr);
  EXPECT_EQ(::operator new[](kTooMany, align_val_t{64}, nothrow), nullptr);
}

void* reserve = nullptr;

// Address space for one block of 512 MiB and not for two.
[[noreturn]] void AllocateTwiceWithAReserve() {
  constexpr size_t kBytes = size_t{512} << 20;
  reserve = malloc(kBytes);
  rlimit limit = {kBytes + kBytes / 2, RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &limit);
  std::set_new_handler([] {
    if (reserve == nullptr) _exit(1);
    free(reserve);
    reserve = nullptr;
  });
  static_cast<char*>(::operator new(kBytes))[kBytes - 1] = 1;
  _exit(reserve == nullptr ? 0 : 2);
}

TEST(OperatorNewDeathTest, RetriesAfterAHandlerThatFreesMemory) {
  EXPECT_EXIT(AllocateTwiceWithAReserve(), testing::ExitedWithCode(0), "");
}

// Blocks that are linked by themselves: there is no memory for a list of them.
struct LinkedBlock {
  LinkedBlock* next;
};
LinkedBlock* linked_blocks = nullptr;

constexpr align_val_t kAsMalloc{16};

// Returns how many bytes it has.
size_t TakeBlock(size_t bytes) {
  void* const block = ::operator new(bytes, kAsMalloc);
  linked_blocks = new (block) LinkedBlock{linked_blocks};
  return quarry_malloc_usable_size(block);
}

void FreeBlock() {
  void* const block = linked_blocks;
  linked_blocks = linked_blocks->next;
  ::operator delete(block, kAsMalloc);
}

size_t blocks_to_free = 0;  // By the handler, at once.
size_t live_bytes_when_freed = 0;
size_t mapped_bytes_when_freed = 0;

void FreeBlocksOnce() {
  if (blocks_to_free == 0) throw std::bad_alloc();
  for (; blocks_to_free > 0; --blocks_to_free) FreeBlock();
  const quarry_statistics_t statistics = Statistics();
  live_bytes_when_freed = statistics.live_bytes;
  mapped_bytes_when_freed = statistics.mapped_bytes;
}

// It frees into the magazine which the request had found empty.
TEST_F(OperatorNew, WhatAHandlerHasFreedIsAllUsedAgain) {
  (void)quarry_release_memory(0);
  const size_t limit = Statistics().mapped_bytes + (size_t{8} << 20);
  for (const size_t bytes : {100, 3000, 5000, 20000, 60000, 70000}) {
    for (const size_t freed : {1, 3, 10, 40}) {
      size_t retaken = 0;
      size_t retaken_bytes = 0;
      blocks_to_free = freed;
      std::set_new_handler(FreeBlocksOnce);
      ASSERT_EQ(quarry_set_memory_limit(0, limit), 0);
      try {
        while (retaken < freed) {
          const size_t taken_bytes = TakeBlock(bytes);
          if (blocks_to_free > 0) continue;
          ++retaken;
          retaken_bytes += taken_bytes;
        }
      } catch (const std::bad_alloc&) {
      }
      const quarry_statistics_t after = Statistics();
      ASSERT_EQ(quarry_set_memory_limit(0, 0), 0);
      std::set_new_handler(nullptr);
      EXPECT_EQ(retaken, freed) << bytes;
      EXPECT_EQ(after.live_bytes, live_bytes_when_freed + retaken_bytes)
          << bytes << ", " << freed;
      EXPECT_LE(after.mapped_bytes, mapped_bytes_when_freed) << bytes << ", " << freed;
      while (linked_blocks != nullptr) FreeBlock();
      quarry_verify();
    }
  }
}

TEST_F(OperatorNew, SizeReturningFormsTellTheUsableBytes) {
  for (const size_t bytes : {0, 1, 33, 1000, 40000, 5000000}) {
    for (const __sized_ptr_t result :
         {__size_returning_new(bytes),
          __size_returning_new_hot_cold(bytes, __hot_cold_t{255})}) {
      ASSERT_NE(result.p, nullptr);
      EXPECT_GE(result.n, bytes);
      EXPECT_EQ(result.n, quarry_malloc_usable_size(result.p));
      memset(result.p, 1, result.n);
      ::operator delete(result.p, result.n);
    }
    const align_val_t alignment{256};
    for (const __sized_ptr_t result :
         {__size_returning_new_aligned(bytes, alignment),
          __size_returning_new_aligned_hot_cold(bytes, alignment,
                                                __hot_cold_t{0})}) {
      ASSERT_NE(result.p, nullptr);
      EXPECT_TRUE(IsAligned(result.p, 256));
      EXPECT_GE(result.n, bytes);
      memset(result.p, 1, result.n);
      ::operator delete(result.p, result.n, alignment);
    }
  }
  EXPECT_THROW(__size_returning_new(kTooMany), std::bad_alloc);
  EXPECT_THROW(__size_returning_new_aligned(kTooMany, align_val_t{64}),
               std::bad_alloc);
}

}  // namespace
}  // namespace quarry
