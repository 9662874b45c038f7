#include "alloc/calls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "alloc/heap.h"
#include "alloc/options.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/malloc_contract.h"

namespace quarry {
namespace {

void* MallocCall(size_t bytes) { return Malloc(bytes); }
void FreeCall(void* block) { Free(block); }
size_t UsableBytesCall(void* block) { return UsableBytes(block); }
void FreeAlignedSizedCall(void* block, size_t alignment, size_t bytes) {
  DeallocateAlignedSized(block, bytes, alignment);
}

void* ReallocarrayCall(void* block, size_t count, size_t bytes_each) {
  return Reallocarray(block, count, bytes_each, Realloc);
}
void* ReallocfCall(void* block, size_t bytes) {
  return Reallocf(block, bytes, Realloc, FreeCall);
}

constexpr Surface kCalls = {
    .name = "Calls",
    .malloc = MallocCall,
    .free = FreeCall,
    .calloc = Calloc,
    .realloc = Realloc,
    .reallocarray = ReallocarrayCall,
    .reallocf = ReallocfCall,
    .memalign = Memalign,
    .aligned_alloc = Memalign,
    .posix_memalign = PosixMemalign,
    .valloc = Valloc,
    .pvalloc = Pvalloc,
    .usable_size = UsableBytesCall,
    .free_sized = DeallocateSized,
    .free_aligned_sized = FreeAlignedSizedCall,
};

INSTANTIATE_TEST_SUITE_P(Calls, MallocContract, testing::Values(kCalls),
                         testing::PrintToStringParamName());

TEST(Calls, TheSlowPathServesEverySize) {
  for (const size_t bytes : {0, 1, 100, 10000, 100000, 10000000}) {
    void* block = MallocSlow(bytes);
    ASSERT_NE(block, nullptr);
    EXPECT_GE(UsableBytes(block), bytes);
    Free(block);
  }
}

// Callers need not have looked whether the fast path has one.
TEST(Calls, TheSlowPathLosesNoBlockOfTheFastPath) {
  for (const size_t bytes : {1, 100, 5000, 20000, 60000}) {
    const size_t live_bytes = GatherStatistics().live_small_bytes;
    // Two full magazines, which are the most that malloc() has at hand.
    std::vector<void*> blocks(1500);
    for (void*& block : blocks) block = Malloc(bytes);
    for (int round = 0; round < 20; ++round) {
      for (size_t i = 0; i < blocks.size(); i += 2) Free(blocks[i]);
      for (size_t i = 0; i < blocks.size(); i += 2) blocks[i] = MallocSlow(bytes);
    }
    for (void* block : blocks) Free(block);
    EXPECT_EQ(GatherStatistics().live_small_bytes, live_bytes) << bytes;
    VerifyHeap();
  }
}

TEST(Calls, BlocksAlignedTo8AreFreedLikeAnyOther) {
  for (size_t bytes = 0; bytes <= 100; ++bytes) {
    void* block = MallocAligned8(bytes);
    ASSERT_NE(block, nullptr);
    EXPECT_TRUE(IsAligned(block, 8));
    memset(block, 1, bytes);
    block = Realloc(block, bytes + 1);
    EXPECT_TRUE(AllBytesAre(block, bytes, 1));
    Free(block);
  }
  errno = 0;
  EXPECT_EQ(MallocAligned8(Opaque(SIZE_MAX)), nullptr);
  EXPECT_EQ(errno, ENOMEM);
}

TEST(Calls, ABufferAlignedToPagesMayHaveItsOwnMapping) {
  const size_t threshold_before = settings.mmap_threshold_bytes;
  for (const size_t threshold : {size_t{0}, size_t{50000}, threshold_before}) {
    settings.mmap_threshold_bytes = threshold;
    for (const size_t bytes : {16385, 40000, 60000, 200000}) {
      void* const block = Memalign(4096, bytes);
      EXPECT_TRUE(block != nullptr && IsAligned(block, 4096));
      memset(block, 1, bytes);
      DeallocateAlignedSized(block, bytes, 4096);
    }
  }
}

TEST(Calls, ABufferAlignedToPagesIsFilledWhereBlocksAre) {
  settings.perturb_byte = 0x5a;
  ApplyPerturbation();
  for (const size_t bytes : {40000, 40000, 5000000}) {
    void* const block = Memalign(4096, bytes);
    EXPECT_TRUE(block != nullptr && IsAligned(block, 4096));
    EXPECT_TRUE(AllBytesAre(block, bytes, 0xa5));
    Free(block);
  }
  settings.perturb_byte = 0;
  ApplyPerturbation();
}

TEST(Calls, ThePageOfStatisticsIsThatOfTheHeap) {
  testing::internal::CaptureStderr();
  PrintHeapStatistics(STDERR_FILENO);
  const std::string page = testing::internal::GetCapturedStderr();
  EXPECT_EQ(page.find("quarry: memory of process "), 0u);
  EXPECT_NE(page.find("= mapped from the system"), std::string::npos);
}

// Ends the process as `main` does, so that destructors run.
[[noreturn]] void ExitWithOption(const char* option) {
  ApplyOptions(option, STDERR_FILENO);
  exit(0);
}

TEST(CallsDeathTest, StatisticsArePrintedAtExitIfAskedFor) {
  EXPECT_EXIT(ExitWithOption("stats_at_exit:1"), testing::ExitedWithCode(0),
              "^quarry: memory of process [0-9]+\n");
  EXPECT_EXIT(ExitWithOption("stats_at_exit:0"), testing::ExitedWithCode(0),
              "^$");
}

}  // namespace
}  // namespace quarry
