#include "arena/huge.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "arena/clock.h"
#include "arena/limits.h"
#include "arena/maintenance_signal.h"
#include "arena/metadata.h"
#include "arena/page_map.h"
#include "arena/page_source.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/arena/resident_pages.h"
#include "tests/arena/scripted_page_source.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

using Kind = ScriptedPageSource::Kind;

constexpr size_t kMiB = size_t{1} << 20;

// Faults of this process that needed no disk.
long Faults() {
  rusage usage;
  EXPECT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  return usage.ru_minflt;
}

void RestoreSettings() {
  static constexpr Settings kDefaults;
  settings.mmap_threshold_bytes = kDefaults.mmap_threshold_bytes.load();
  settings.mmap_threshold_adapts = kDefaults.mmap_threshold_adapts.load();
  settings.trim_threshold_bytes = kDefaults.trim_threshold_bytes.load();
  settings.decay_ms = kDefaults.decay_ms.load();
  settings.huge_pages = kDefaults.huge_pages.load();
  settings.soft_limit_bytes = kDefaults.soft_limit_bytes.load();
}

class HugeBlocksTest : public testing::Test {
 protected:
  // What is kept must not depend on the sizes that were freed before.
  HugeBlocksTest() { settings.mmap_threshold_adapts = false; }

  // Every test ends with no block, nothing kept, and nothing mapped.
  ~HugeBlocksTest() override {
    RestoreSettings();
    source_.RefuseNothing();
    blocks_.Verify();
    EXPECT_EQ(blocks_.statistics().live_blocks, 0u);
    EXPECT_EQ(blocks_.statistics().live_bytes, 0u);
    const size_t kept_bytes = blocks_.statistics().cached_bytes;
    EXPECT_LE(blocks_.Purge(), kept_bytes);
    EXPECT_EQ(blocks_.statistics().cached_bytes, 0u);
    blocks_.Verify();
    EXPECT_EQ(source_.statistics().mapped_bytes, 0u);
    EXPECT_EQ(metadata_.in_use_bytes(), 0u);
  }

  // What is kept is at most what was in use beside it once: so much, and more.
  void MakeRoomToKeep(size_t bytes) {
    blocks_.Deallocate(blocks_.Allocate(bytes, 1));
    blocks_.Purge();
    source_.ForgetCalls();
  }

  ScriptedPageSource source_;
  OsPageSource metadata_source_;
  MetadataPool metadata_{metadata_source_};
  HugeBlocks blocks_{source_, metadata_};
};

using HugeBlocksDeathTest = HugeBlocksTest;

TEST_F(HugeBlocksTest, ABlockIsAMapping) {
  Huge* const huge = blocks_.Allocate(5 * kMiB + 1, 1);
  ASSERT_NE(huge, nullptr);
  EXPECT_EQ(huge->bytes, 5 * kMiB + PageBytes());
  EXPECT_EQ(source_.statistics().mapped_bytes, huge->bytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(huge->start) % kGranuleBytes, 0u);
  EXPECT_TRUE(huge->zeroed);
  EXPECT_EQ(HugeBlocks::Of(huge->start), huge);
  EXPECT_EQ(HugeBlocks::Of(huge->start + 16), nullptr);
  EXPECT_EQ(HugeBlocks::Of(huge->start + kGranuleBytes), nullptr);
  EXPECT_EQ(HugeBlocks::Of(nullptr), nullptr);
  EXPECT_EQ(blocks_.Containing(huge->start + kMiB), huge);
  EXPECT_EQ(blocks_.Containing(huge->start + huge->bytes), nullptr);
  EXPECT_EQ(blocks_.statistics().live_blocks, 1u);
  EXPECT_EQ(blocks_.statistics().live_bytes, huge->bytes);
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, AlignsUpToAGiB) {
  for (size_t alignment = 1; alignment <= size_t{1} << 30; alignment *= 8) {
    Huge* const huge = blocks_.Allocate(kMiB, alignment);
    ASSERT_NE(huge, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(huge->start) % alignment, 0u);
    EXPECT_EQ(huge->bytes, kMiB);
    blocks_.Deallocate(huge);
    blocks_.Purge();
  }
}

TEST_F(HugeBlocksTest, RefusesAbsurdRequests) {
  EXPECT_EQ(blocks_.Allocate(~size_t{0}, 1), nullptr);
  EXPECT_EQ(blocks_.Allocate(PTRDIFF_MAX, 1), nullptr);
  EXPECT_EQ(blocks_.Allocate(kMiB, size_t{1} << 63), nullptr);
  Huge* const huge = blocks_.Allocate(kMiB, 1);
  EXPECT_FALSE(blocks_.Resize(huge, ~size_t{0}));
  EXPECT_FALSE(blocks_.Resize(huge, PTRDIFF_MAX));
  EXPECT_EQ(huge->bytes, kMiB);
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, AFreedMappingIsReusedWithoutASystemCall) {
  Huge* const first = blocks_.Allocate(800 << 10, 1);
  char* const start = first->start;
  memset(start, 1, 800 << 10);
  blocks_.Deallocate(first);
  source_.ForgetCalls();
  for (int i = 0; i < 100; ++i) {
    Huge* const again = blocks_.Allocate((800 << 10) - i * 100, 1);
    ASSERT_EQ(again->start, start);
    EXPECT_FALSE(again->zeroed);
    EXPECT_EQ(again->bytes, size_t{800} << 10);
    blocks_.Deallocate(again);
  }
  EXPECT_TRUE(source_.calls().empty());
}

TEST_F(HugeBlocksTest, ReuseWastesAtMostAnEighth) {
  MakeRoomToKeep(32 * kMiB);
  Huge* const freed = blocks_.Allocate(9 * kMiB, 1);
  char* const start = freed->start;
  blocks_.Deallocate(freed);
  Huge* const too_small = blocks_.Allocate(8 * kMiB - PageBytes(), 1);
  EXPECT_NE(too_small->start, start);
  Huge* const right = blocks_.Allocate(8 * kMiB, 1);
  EXPECT_EQ(right->start, start);
  blocks_.Deallocate(too_small);
  blocks_.Deallocate(right);
}

TEST_F(HugeBlocksTest, ReuseIsTheBestFitAndAligned) {
  Huge* const a = blocks_.Allocate(8 * kMiB + 2 * PageBytes(), 1);
  Huge* const b = blocks_.Allocate(8 * kMiB, 64 * kMiB);
  Huge* const c = blocks_.Allocate(8 * kMiB + PageBytes(), 1);
  char* const b_start = b->start;
  char* const c_start = c->start;
  for (Huge* huge : {a, b, c}) blocks_.Deallocate(huge);
  Huge* const unaligned = blocks_.Allocate(8 * kMiB + 1, 1);
  EXPECT_EQ(unaligned->start, c_start);
  Huge* const aligned = blocks_.Allocate(8 * kMiB, 64 * kMiB);
  EXPECT_EQ(aligned->start, b_start);
  EXPECT_EQ(aligned->alignment, 64 * kMiB);
  blocks_.Deallocate(aligned);
  blocks_.Deallocate(unaligned);
}

TEST_F(HugeBlocksTest, KeepsFewAndThrowsOutTheOldest) {
  std::vector<Huge*> live;
  for (size_t i = 0; i <= HugeBlocks::kMostCachedBlocks; ++i) {
    live.push_back(blocks_.Allocate(kMiB, 1));
  }
  char* const oldest = live[0]->start;
  for (Huge* huge : live) blocks_.Deallocate(huge);
  EXPECT_EQ(blocks_.statistics().cached_blocks, HugeBlocks::kMostCachedBlocks);
  EXPECT_EQ(PageMap::TagOf(oldest), kNoTag);
  blocks_.Verify();

  live.clear();
  for (int i = 0; i < 6; ++i) live.push_back(blocks_.Allocate(24 * kMiB, 1));
  for (Huge* huge : live) {
    blocks_.Deallocate(huge);
    EXPECT_LE(blocks_.statistics().cached_bytes, HugeBlocks::kMostDirtyBytes);
    blocks_.Verify();
  }
  EXPECT_EQ(blocks_.statistics().cached_blocks, 5u);
}

TEST_F(HugeBlocksTest, WhatIsKeptDoesNotRaiseThePeak) {
  Huge* const first = blocks_.Allocate(20 * kMiB, 1);
  blocks_.Deallocate(blocks_.Allocate(10 * kMiB, 1));
  blocks_.Deallocate(first);
  EXPECT_EQ(blocks_.statistics().cached_bytes, 30 * kMiB);
  // The oldest goes.
  Huge* const small = blocks_.Allocate(8 * kMiB, 1);
  EXPECT_EQ(blocks_.statistics().cached_bytes, 20 * kMiB);
  Huge* const grown = blocks_.Allocate(kMiB, 1);
  ASSERT_TRUE(blocks_.Resize(grown, 2 * kMiB));
  EXPECT_EQ(blocks_.statistics().cached_bytes, 20 * kMiB) << "as much as once";
  ASSERT_TRUE(blocks_.Resize(grown, 2 * kMiB + PageBytes()));
  EXPECT_EQ(blocks_.statistics().cached_bytes, 0u);
  blocks_.Verify();
  blocks_.Deallocate(small);
  blocks_.Deallocate(grown);
}

TEST_F(HugeBlocksTest, ALargeOneThatWasFilledKeepsItsPages) {
  for (const size_t bytes : {HugeBlocks::kLargestUnfilledBytes + PageBytes(),
                             HugeBlocks::kLargestDirtyBytes}) {
    Huge* huge = blocks_.Allocate(bytes, 1);
    char* const start = huge->start;
    start[0] = 1;
    blocks_.Deallocate(huge, Filling::kFromLowEnd);
    huge = blocks_.Allocate(bytes, 1);
    EXPECT_EQ(huge->start, start);
    EXPECT_FALSE(huge->zeroed);
    EXPECT_EQ(source_.CountOf(Kind::kPurge), 0u);
    blocks_.Deallocate(huge, Filling::kUnknown);
    EXPECT_EQ(source_.CountOf(Kind::kPurge), 1u);
    blocks_.Purge();
    source_.ForgetCalls();
  }
}

TEST_F(HugeBlocksTest, KeepsOfALargeOneTheAddressesAlone) {
  const size_t bytes = HugeBlocks::kLargestDirtyBytes + PageBytes();
  Huge* const huge = blocks_.Allocate(bytes, 1);
  char* const start = huge->start;
  memset(start, 1, bytes);
  blocks_.Deallocate(huge);
  EXPECT_EQ(blocks_.statistics().cached_bytes, bytes);
  EXPECT_EQ(source_.CountOf(Kind::kPurge), 1u);
  EXPECT_EQ(source_.CountOf(Kind::kUnmap), 0u);
  Huge* const again = blocks_.Allocate(bytes, 1);
  EXPECT_EQ(again->start, start);
  EXPECT_TRUE(again->zeroed);
  EXPECT_TRUE(std::all_of(start, start + bytes, [](char c) { return c == 0; }));
  blocks_.Deallocate(again);
  EXPECT_EQ(blocks_.PurgeFreedBefore(NowMs() + 1000), bytes);
  EXPECT_EQ(source_.statistics().mapped_bytes, 0u);
}

// The system makes no huge page where it keeps the table of small ones.
TEST_F(HugeBlocksTest, WhatWillBeOnHugePagesIsMappedAnew) {
  const size_t bytes = HugeBlocks::kLargestDirtyBytes + PageBytes();
  blocks_.Deallocate(blocks_.Allocate(bytes, 1), Filling::kFromLowEnd);
  EXPECT_EQ(blocks_.statistics().cached_blocks, 0u);
  blocks_.Deallocate(blocks_.Allocate(bytes, 1, Filling::kFromLowEnd),
                     Filling::kFromLowEnd);
  EXPECT_EQ(blocks_.statistics().cached_bytes, bytes);
}

TEST_F(HugeBlocksTest, ALargeOneThatIsNotPurgedIsNotKept) {
  Huge* const huge =
      blocks_.Allocate(HugeBlocks::kLargestDirtyBytes + PageBytes(), 1);
  source_.RefuseKind(Kind::kPurge);
  blocks_.Deallocate(huge);
  EXPECT_EQ(blocks_.statistics().cached_blocks, 0u);
  EXPECT_EQ(source_.statistics().mapped_bytes, 0u);
}

TEST_F(HugeBlocksTest, GivesUpWhatItKeepsWhenMemoryIsShort) {
  blocks_.Deallocate(blocks_.Allocate(kMiB, 1));
  source_.RefuseNth(1);
  Huge* const huge = blocks_.Allocate(5 * kMiB, 1);
  ASSERT_NE(huge, nullptr);
  EXPECT_EQ(blocks_.statistics().cached_blocks, 0u);
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, ShrinksInPlace) {
  Huge* const huge = blocks_.Allocate(4 * kMiB, 1);
  char* const start = huge->start;
  start[kMiB - 1] = 7;
  ASSERT_TRUE(blocks_.Resize(huge, kMiB - 5));
  EXPECT_EQ(huge->start, start);
  EXPECT_EQ(huge->bytes, kMiB);
  EXPECT_EQ(start[kMiB - 1], 7);
  EXPECT_EQ(source_.statistics().mapped_bytes, kMiB);
  blocks_.Verify();
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, GrowsInPlaceWhereTheAddressesAreFree) {
  Huge* const huge = blocks_.Allocate(8 * kMiB, 1);
  ASSERT_TRUE(blocks_.Resize(huge, 4 * kMiB));
  char* const start = huge->start;
  ASSERT_TRUE(blocks_.Resize(huge, 8 * kMiB));
  EXPECT_EQ(huge->start, start);
  EXPECT_EQ(source_.CountOf(Kind::kMove), 0u);
  EXPECT_EQ(start[8 * kMiB - 1], 0);
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, MovesWithItsContentAndAlignment) {
  source_.RefuseKind(Kind::kGrow);
  for (size_t alignment : {kGranuleBytes, 8 * kMiB}) {
    Huge* const huge = blocks_.Allocate(kMiB, alignment);
    char* const old = huge->start;
    memset(old, 7, kMiB);
    ASSERT_TRUE(blocks_.Resize(huge, 40 * kMiB));
    EXPECT_NE(huge->start, old);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(huge->start) % alignment, 0u);
    EXPECT_EQ(huge->bytes, 40 * kMiB);
    EXPECT_EQ(huge->start[0], 7);
    EXPECT_EQ(huge->start[kMiB - 1], 7);
    EXPECT_EQ(huge->start[kMiB], 0);
    EXPECT_EQ(huge->start[40 * kMiB - 1], 0);
    EXPECT_EQ(HugeBlocks::Of(huge->start), huge);
    EXPECT_EQ(HugeBlocks::Of(old), nullptr);
    EXPECT_EQ(source_.statistics().mapped_bytes, 40 * kMiB);
    EXPECT_EQ(blocks_.statistics().live_bytes, 40 * kMiB);
    blocks_.Verify();
    blocks_.Deallocate(huge);
    blocks_.Purge();
  }
}

// Every call of a resize that may be refused is refused in turn.
TEST_F(HugeBlocksTest, ARefusedResizeChangesNothing) {
  Huge* const huge = blocks_.Allocate(kMiB, 1);
  char* const start = huge->start;
  start[0] = 7;
  source_.RefuseKind(Kind::kGrow);
  for (Kind refused : {Kind::kMap, Kind::kMove}) {
    source_.RefuseKind(refused);
    EXPECT_FALSE(blocks_.Resize(huge, 40 * kMiB));
    EXPECT_EQ(huge->start, start);
    EXPECT_EQ(huge->bytes, kMiB);
    EXPECT_EQ(start[0], 7);
    EXPECT_EQ(HugeBlocks::Of(start), huge);
    EXPECT_EQ(source_.statistics().mapped_bytes, kMiB);
    blocks_.Verify();
    source_.RefuseNothing();
    source_.RefuseKind(Kind::kGrow);
  }
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, ARefusedMappingChangesNothing) {
  source_.RefuseKind(Kind::kMap);
  EXPECT_EQ(blocks_.Allocate(kMiB, 1), nullptr);
  EXPECT_EQ(metadata_.in_use_bytes(), 0u);
  EXPECT_EQ(blocks_.statistics().live_blocks, 0u);
}

TEST_F(HugeBlocksTest, ManyCallocsOfAGiBTouchNothing) {
  for (int i = 0; i < 100; ++i) {
    Huge* const huge = blocks_.Allocate(size_t{1} << 30, 1);
    ASSERT_NE(huge, nullptr);
    ASSERT_TRUE(huge->zeroed);
    EXPECT_EQ(ResidentPages(huge->start, PageBytes()), 0u);
    blocks_.Deallocate(huge);
  }
}

// --- What is kept for reuse goes after a time. ---

TEST_F(HugeBlocksTest, PurgesWhatWasFreedBeforeATime) {
  MakeRoomToKeep(4 * kMiB);
  blocks_.Deallocate(blocks_.Allocate(kMiB, 1));
  blocks_.Deallocate(blocks_.Allocate(3 * kMiB, 1));
  const uint32_t now_ms = NowMs();
  EXPECT_EQ(blocks_.PurgeFreedBefore(now_ms - 1000), 0u);
  EXPECT_EQ(blocks_.PurgeFreedBefore(now_ms - INT32_MAX), 0u);
  EXPECT_EQ(blocks_.PurgeFreedBefore(now_ms + 1000), 4 * kMiB);
  EXPECT_EQ(blocks_.statistics().cached_blocks, 0u);
}

TEST_F(HugeBlocksTest, PurgesTheOldestOnly) {
  Huge* const newer = blocks_.Allocate(3 * kMiB, 1);
  blocks_.Deallocate(blocks_.Allocate(kMiB, 1));
  const uint32_t freed_ms = NowMs();
  while (AgeMs(freed_ms, NowMs()) < 20) std::this_thread::yield();
  blocks_.Deallocate(newer);
  blocks_.Verify();
  EXPECT_EQ(blocks_.PurgeFreedBefore(freed_ms + 10), kMiB);
  EXPECT_EQ(blocks_.statistics().cached_bytes, 3 * kMiB);
}

TEST_F(HugeBlocksTest, WhatIsReusedIsNotOld) {
  for (int i = 0; i < 20; ++i) {
    Huge* const huge = blocks_.Allocate(kMiB, 1);
    EXPECT_EQ(blocks_.PurgeFreedBefore(NowMs() + 1000), 0u);
    blocks_.Deallocate(huge);
  }
  EXPECT_EQ(source_.CountOf(Kind::kMap), 1u);
}

TEST_F(HugeBlocksTest, KeepingOneCallsTheMaintenanceThread) {
  maintenance_signal.FallAsleep();
  Huge* const huge = blocks_.Allocate(kMiB, 1);
  EXPECT_EQ(maintenance_signal.state(), MaintenanceSignal::kAsleep);
  blocks_.Deallocate(huge);
  EXPECT_EQ(maintenance_signal.state(), MaintenanceSignal::kAwake);
  // As it was: there is no thread.
  maintenance_signal.FallAsleep();
  maintenance_signal.ResetAfterFork();
}

TEST_F(HugeBlocksTest, KeepsNothingWithoutADecayTime) {
  settings.decay_ms = 0;
  blocks_.Deallocate(blocks_.Allocate(kMiB, 1));
  EXPECT_EQ(source_.statistics().mapped_bytes, 0u);
}

TEST_F(HugeBlocksTest, KeepsNothingAboveTheSoftLimit) {
  settings.soft_limit_bytes = kMiB;
  ASSERT_TRUE(memory_limits.Charge(2 * kMiB));
  blocks_.Deallocate(blocks_.Allocate(kMiB, 1));
  EXPECT_EQ(source_.statistics().mapped_bytes, 0u);
  memory_limits.Refund(2 * kMiB);
  blocks_.Deallocate(blocks_.Allocate(kMiB, 1));
  EXPECT_EQ(source_.statistics().mapped_bytes, kMiB);
}

// --- The threshold. ---

TEST_F(HugeBlocksTest, AFreedBlockRaisesTheThresholdAndIsNotKept) {
  settings.mmap_threshold_adapts = true;
  blocks_.Deallocate(blocks_.Allocate(3 * kMiB, 1));
  EXPECT_EQ(settings.mmap_threshold_bytes, 4 * kMiB);
  blocks_.Deallocate(blocks_.Allocate(20 * kMiB, 1));
  EXPECT_EQ(settings.mmap_threshold_bytes, 20 * kMiB + PageBytes());
  blocks_.Deallocate(blocks_.Allocate(40 * kMiB, 1));
  EXPECT_EQ(settings.mmap_threshold_bytes, 20 * kMiB + PageBytes());
  blocks_.Deallocate(blocks_.Allocate(32 * kMiB, 1));
  EXPECT_EQ(settings.mmap_threshold_bytes, 32 * kMiB + PageBytes());
  EXPECT_EQ(settings.trim_threshold_bytes, 64 * kMiB) << "large enough for one to come and go";
  EXPECT_EQ(blocks_.statistics().cached_bytes, 40 * kMiB);
}

// What was in use when the threshold rose over it.
TEST_F(HugeBlocksTest, WhatIsKeptMayBeTakenByOthersWithItsPages) {
  EXPECT_EQ(blocks_.TakeKept(5 * kMiB, 1), nullptr);
  settings.mmap_threshold_adapts = true;
  Huge* const first = blocks_.Allocate(5 * kMiB, 1);
  Huge* const second = blocks_.Allocate(5 * kMiB, 1);
  Huge* const small =
      blocks_.Allocate(HugeBlocks::kLeastTakenBytes - PageBytes(), 1);
  memset(second->start, 7, 5 * kMiB);
  blocks_.Deallocate(first);
  EXPECT_EQ(blocks_.TakeKept(5 * kMiB, 1), nullptr) << "it raised the threshold";
  blocks_.Deallocate(second);
  blocks_.Deallocate(small);
  EXPECT_EQ(blocks_.statistics().cached_blocks, 2u);
  blocks_.Verify();

  EXPECT_EQ(blocks_.TakeKept(4 * kMiB, 1), nullptr) << "a quarter larger";
  EXPECT_EQ(blocks_.TakeKept(5 * kMiB + 1, 1), nullptr);
  EXPECT_EQ(blocks_.TakeKept(5 * kMiB, size_t{1} << 40), nullptr);
  EXPECT_EQ(blocks_.TakeKept(HugeBlocks::kLeastTakenBytes - PageBytes(), 1), nullptr)
      << "too small to look for";
  source_.ForgetCalls();
  Huge* const taken = blocks_.TakeKept(5 * kMiB - 1, 1);
  ASSERT_EQ(taken, second);
  EXPECT_FALSE(taken->zeroed);
  EXPECT_EQ(taken->start[5 * kMiB - 1], 7);
  EXPECT_EQ(HugeBlocks::Of(taken->start), taken);
  EXPECT_TRUE(source_.calls().empty());
  EXPECT_EQ(blocks_.TakeKept(5 * kMiB, 1), nullptr) << "it is in use";
  blocks_.Verify();
  blocks_.Deallocate(taken);
}

TEST_F(HugeBlocksTest, AddressesWithoutPagesAreNotTaken) {
  constexpr size_t kBytes = HugeBlocks::kLargestDirtyBytes + kMiB;
  blocks_.Deallocate(blocks_.Allocate(kBytes, 1));
  ASSERT_EQ(blocks_.statistics().cached_blocks, 1u);
  EXPECT_EQ(blocks_.TakeKept(kBytes, 1), nullptr);
}

TEST_F(HugeBlocksTest, AThresholdThatWasSetStays) {
  blocks_.Deallocate(blocks_.Allocate(20 * kMiB, 1));
  EXPECT_EQ(settings.mmap_threshold_bytes, 4 * kMiB);
}

// --- Growth and zeros. ---

TEST_F(HugeBlocksTest, ResizingMovesNoByte) {
  source_.RefuseKind(Kind::kGrow);
  Huge* const huge = blocks_.Allocate(32 * kMiB, 1);
  memset(huge->start, 7, 32 * kMiB);
  const long before = Faults();
  ASSERT_TRUE(blocks_.Resize(huge, 64 * kMiB));
  ASSERT_TRUE(blocks_.Resize(huge, 16 * kMiB));
  ASSERT_TRUE(blocks_.Resize(huge, 40 * kMiB));
  // A copy would have faulted in the 8192 pages of its new place.
  EXPECT_LT(Faults() - before, 512);
  EXPECT_EQ(huge->start[16 * kMiB - 1], 7);
  EXPECT_EQ(huge->start[16 * kMiB], 0);
  EXPECT_EQ(source_.statistics().mapped_bytes, 40 * kMiB);
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, PagesMoveInWithoutACopy) {
  char* const run = static_cast<char*>(source_.Map(8 * kMiB, 1));
  memset(run, 7, 8 * kMiB);
  const long before = Faults();
  Huge* const huge = blocks_.MoveIn(run, 8 * kMiB, 12 * kMiB + 1);
  ASSERT_NE(huge, nullptr);
  EXPECT_LT(Faults() - before, 512);
  EXPECT_EQ(huge->bytes, 12 * kMiB + PageBytes());
  EXPECT_FALSE(huge->zeroed);
  EXPECT_EQ(HugeBlocks::Of(huge->start), huge);
  for (size_t i = 0; i < 8 * kMiB; ++i) ASSERT_EQ(huge->start[i], 7);
  EXPECT_EQ(huge->start[8 * kMiB], 0);
  EXPECT_EQ(huge->start[12 * kMiB], 0);
  EXPECT_EQ(run[0], 0);
  blocks_.Verify();
  ASSERT_TRUE(blocks_.Resize(huge, 64 * kMiB));
  EXPECT_EQ(huge->start[8 * kMiB - 1], 7);
  blocks_.Deallocate(huge);
  source_.Unmap(run, 8 * kMiB);
}

TEST_F(HugeBlocksTest, ARefusedMoveInChangesNothing) {
  char* const run = static_cast<char*>(source_.Map(kMiB, 1));
  run[0] = 7;
  for (Kind refused : {Kind::kMap, Kind::kMoveOut}) {
    source_.RefuseKind(refused);
    EXPECT_EQ(blocks_.MoveIn(run, kMiB, 2 * kMiB), nullptr);
    EXPECT_EQ(run[0], 7);
    EXPECT_EQ(source_.statistics().mapped_bytes, kMiB);
    EXPECT_EQ(metadata_.in_use_bytes(), 0u);
    EXPECT_EQ(blocks_.statistics().live_blocks, 0u);
    source_.RefuseNothing();
  }
  EXPECT_EQ(blocks_.MoveIn(run, kMiB, ~size_t{0}), nullptr);
  source_.Unmap(run, kMiB);
}

// The kernel moves the tables of pages whole only from one address to another
// that is the same within what a table covers.
TEST_F(HugeBlocksTest, WhatGrowsIsPlacedWhereATableOfPagesBegins) {
  source_.RefuseKind(Kind::kGrow);
  Huge* const huge = blocks_.Allocate(kMiB, 1);
  for (size_t bytes = 3 * kMiB; bytes < 100 * kMiB; bytes += bytes / 3) {
    ASSERT_TRUE(blocks_.Resize(huge, bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(huge->start) % (2 * kMiB), 0u);
  }
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, AReusedMappingGrowsWithItsContent) {
  Huge* const first = blocks_.Allocate(9 * kMiB, 1);
  memset(first->start, 1, 9 * kMiB);
  blocks_.Deallocate(first);
  Huge* const huge = blocks_.Allocate(8 * kMiB + 1, 1);
  ASSERT_EQ(huge, first);
  EXPECT_EQ(huge->bytes, 9 * kMiB);
  memset(huge->start, 2, 8 * kMiB + 1);
  for (const size_t bytes : {8 * kMiB + 1, 12 * kMiB, 80 * kMiB, kMiB}) {
    ASSERT_TRUE(blocks_.Resize(huge, bytes));
    const size_t kept = std::min(bytes, kMiB);
    for (size_t i = 0; i < kept; ++i) ASSERT_EQ(huge->start[i], 2);
    if (bytes > 9 * kMiB) {
      EXPECT_EQ(huge->start[9 * kMiB], 0);
      EXPECT_EQ(huge->start[bytes - 1], 0);
    }
  }
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, GrowsInPlaceByWhatThereIsRoomFor) {
  Huge* const huge = blocks_.Allocate(16 * kMiB, 1);
  ASSERT_TRUE(blocks_.Resize(huge, kMiB));
  char* const start = huge->start;
  EXPECT_EQ(blocks_.TryGrow(huge, 1, kMiB), kMiB);
  EXPECT_EQ(blocks_.TryGrow(huge, kMiB + 1, 2 * kMiB - 1), 2 * kMiB);
  source_.RefuseNth(1);
  EXPECT_EQ(blocks_.TryGrow(huge, 3 * kMiB, 16 * kMiB), 3 * kMiB);
  source_.RefuseNth(1);
  EXPECT_EQ(blocks_.TryGrow(huge, kMiB, 16 * kMiB), 3 * kMiB);
  source_.RefuseKind(Kind::kGrow);
  EXPECT_EQ(blocks_.TryGrow(huge, 4 * kMiB, 16 * kMiB), 0u);
  EXPECT_EQ(blocks_.TryGrow(huge, ~size_t{0}, ~size_t{0}), 0u);
  EXPECT_EQ(huge->bytes, 3 * kMiB);
  EXPECT_EQ(huge->start, start);
  EXPECT_EQ(source_.CountOf(Kind::kMove), 0u);
  blocks_.Verify();
  blocks_.Deallocate(huge);
}

// --- Huge pages. ---

TEST_F(HugeBlocksTest, WhatWillBeFilledIsOnHugePages) {
  Huge* const huge = blocks_.Allocate(9 * kMiB, 1, Filling::kFromLowEnd);
  EXPECT_TRUE(huge->has_huge_pages);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(huge->start) % (2 * kMiB), 0u);
  EXPECT_EQ(huge->alignment, kGranuleBytes);
  ASSERT_EQ(source_.CountOf(Kind::kHugePages), 1u);
  EXPECT_EQ(source_.calls().back().start, huge->start);
  EXPECT_EQ(source_.calls().back().bytes, huge->bytes);
  blocks_.Deallocate(huge);
  EXPECT_EQ(source_.CountOf(Kind::kSmallPages), 0u);

  Huge* const other = blocks_.Allocate(20 * kMiB, 1);
  EXPECT_FALSE(other->has_huge_pages);
  EXPECT_EQ(source_.CountOf(Kind::kHugePages), 1u);
  blocks_.Deallocate(other);
}

TEST_F(HugeBlocksTest, AReusedMappingHasTheAdviceOfItsNextBlock) {
  const size_t bytes = HugeBlocks::kLargestDirtyBytes + PageBytes();
  Huge* const huge = blocks_.Allocate(bytes, 1, Filling::kFromLowEnd);
  blocks_.Deallocate(huge, Filling::kFromLowEnd);
  ASSERT_EQ(blocks_.Allocate(bytes, 1, Filling::kFromLowEnd), huge);
  EXPECT_TRUE(huge->has_huge_pages);
  EXPECT_EQ(source_.CountOf(Kind::kHugePages), 1u);
  blocks_.Deallocate(huge, Filling::kFromLowEnd);
  ASSERT_EQ(blocks_.Allocate(bytes, 1), huge);
  EXPECT_FALSE(huge->has_huge_pages);
  ASSERT_EQ(source_.CountOf(Kind::kSmallPages), 1u);
  EXPECT_EQ(source_.calls().back().bytes, bytes);
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, WhatGrowsIsOnHugePagesOnceItIsFilled) {
  for (const bool moves : {false, true}) {
    if (moves) source_.RefuseKind(Kind::kGrow);
    Huge* const huge = blocks_.Allocate(8 * kMiB, 1);
    if (!blocks_.Resize(huge, 9 * kMiB, Filling::kUnknown)) FAIL();
    EXPECT_FALSE(huge->has_huge_pages);
    source_.ForgetCalls();
    if (!blocks_.Resize(huge, 12 * kMiB, Filling::kFromLowEnd)) FAIL();
    EXPECT_TRUE(huge->has_huge_pages);
    ASSERT_EQ(source_.CountOf(Kind::kHugePages), 1u);
    EXPECT_EQ(source_.calls().back().start, huge->start);
    EXPECT_EQ(source_.calls().back().bytes, 12 * kMiB);
    // It stays so, and is one mapping to the system.
    memset(huge->start, 1, 12 * kMiB);
    source_.RefuseKind(Kind::kGrow);
    if (!blocks_.Resize(huge, 16 * kMiB, Filling::kUnknown)) FAIL();
    EXPECT_TRUE(huge->has_huge_pages);
    EXPECT_EQ(source_.CountOf(Kind::kHugePages), 1u);
    EXPECT_EQ(huge->start[12 * kMiB - 1], 1);
    source_.RefuseNothing();
    blocks_.Deallocate(huge);
    blocks_.Purge();
  }
}

TEST_F(HugeBlocksTest, HugePagesMayBeForbidden) {
  settings.huge_pages = HugePagePolicy::kNever;
  Huge* const huge = blocks_.Allocate(8 * kMiB, 1);
  EXPECT_EQ(source_.CountOf(Kind::kSmallPages), 1u);
  for (const HugePagePolicy policy : {HugePagePolicy::kSystem,
                                      HugePagePolicy::kGrown}) {
    settings.huge_pages = policy;
    Huge* const other = blocks_.Allocate(8 * kMiB, 1);
    ASSERT_TRUE(blocks_.Resize(other, 20 * kMiB));
    blocks_.Deallocate(other);
  }
  EXPECT_EQ(source_.CountOf(Kind::kSmallPages), 1u);
  EXPECT_EQ(source_.CountOf(Kind::kHugePages), 0u);
  blocks_.Deallocate(huge);
}

TEST_F(HugeBlocksTest, AgreesWithAModelOfLiveIntervals) {
  std::mt19937_64 random(TestSeed());
  std::map<char*, Huge*> live;
  size_t live_bytes = 0;
  const auto check_and_stamp = [&](Huge* huge, bool expect_stamp) {
    uint64_t* const first = reinterpret_cast<uint64_t*>(huge->start);
    if (expect_stamp) {
      ASSERT_EQ(first[0], reinterpret_cast<uint64_t>(huge));
    } else if (huge->zeroed) {
      ASSERT_EQ(first[0], 0u);
      ASSERT_EQ(first[huge->bytes / 8 - 1], 0u);
    }
    first[0] = reinterpret_cast<uint64_t>(huge);
    first[huge->bytes / 8 - 1] = first[0];
  };
  for (int step = 0; step < 5000; ++step) {
    const unsigned dice = random() % 100;
    if (live.empty() || (dice < 40 && live.size() < 60)) {
      const size_t alignment = size_t{1} << random() % 24;
      const size_t bytes = 1 + random() % ((random() % 4 == 0 ? 50 : 3) * kMiB);
      Huge* const huge = blocks_.Allocate(bytes, alignment);
      ASSERT_NE(huge, nullptr);
      ASSERT_GE(huge->bytes, bytes);
      ASSERT_LE(huge->bytes, RoundUp(bytes, PageBytes()) / 8 * 9 + PageBytes());
      ASSERT_EQ(reinterpret_cast<uintptr_t>(huge->start) % alignment, 0u);
      const auto after = live.lower_bound(huge->start);
      ASSERT_TRUE(after == live.end() ||
                  huge->start + huge->bytes <= after->first);
      if (after != live.begin()) {
        const Huge* const before = std::prev(after)->second;
        ASSERT_LE(before->start + before->bytes, huge->start);
      }
      check_and_stamp(huge, false);
      live[huge->start] = huge;
      live_bytes += huge->bytes;
    } else {
      auto one = live.begin();
      std::advance(one, random() % live.size());
      Huge* const huge = one->second;
      live.erase(one);
      live_bytes -= huge->bytes;
      check_and_stamp(huge, true);
      if (dice < 75) {
        blocks_.Deallocate(huge);
      } else {
        const size_t bytes = 1 + random() % (6 * kMiB);
        ASSERT_TRUE(blocks_.Resize(huge, bytes));
        ASSERT_EQ(huge->bytes, RoundUp(bytes, PageBytes()));
        check_and_stamp(huge, true);
        ASSERT_EQ(HugeBlocks::Of(huge->start), huge);
        live[huge->start] = huge;
        live_bytes += huge->bytes;
      }
    }
    const HugeBlocks::Statistics statistics = blocks_.statistics();
    ASSERT_EQ(statistics.live_blocks, live.size());
    ASSERT_EQ(statistics.live_bytes, live_bytes);
    ASSERT_EQ(source_.statistics().mapped_bytes,
              statistics.live_bytes + statistics.cached_bytes);
    if (step % 100 == 0) blocks_.Verify();
  }
  for (auto& [start, huge] : live) blocks_.Deallocate(huge);
}

TEST(HugeBlocksThreads, AllocateResizeAndFree) {
  OsPageSource source;
  MetadataPool metadata(source);
  HugeBlocks blocks(source, metadata);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&blocks, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 300; ++i) {
        Huge* const huge = blocks.Allocate(kMiB + random() % kMiB, 1);
        huge->start[0] = static_cast<char>(t);
        EXPECT_TRUE(blocks.Resize(huge, 1 + random() % (4 * kMiB)));
        EXPECT_EQ(huge->start[0], static_cast<char>(t));
        EXPECT_EQ(HugeBlocks::Of(huge->start), huge);
        blocks.Deallocate(huge);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  blocks.Verify();
  EXPECT_EQ(blocks.statistics().live_blocks, 0u);
  blocks.Purge();
}

// Blocks that another thread frees do not pile up.
TEST(HugeBlocksThreads, AllocateHereAndFreeThere) {
  OsPageSource source;
  MetadataPool metadata(source);
  HugeBlocks blocks(source, metadata);
  constexpr int kBlocks = 5000;
  std::atomic<Huge*> handed{nullptr};
  std::thread thread([&] {
    for (int i = 0; i < kBlocks; ++i) {
      Huge* huge;
      while ((huge = handed.exchange(nullptr)) == nullptr) {
        std::this_thread::yield();
      }
      blocks.Deallocate(huge);
    }
  });
  for (int i = 0; i < kBlocks; ++i) {
    Huge* const huge = blocks.Allocate(kMiB, 1);
    ASSERT_NE(huge, nullptr);
    huge->start[0] = 1;
    while (handed.load() != nullptr) std::this_thread::yield();
    handed.store(huge);
    if (i % 100 == 0) blocks.PurgeFreedBefore(NowMs() - 1);
  }
  thread.join();
  EXPECT_LE(source.statistics().peak_mapped_bytes, 5 * kMiB);
  blocks.Verify();
  blocks.Purge();
}

TEST_F(HugeBlocksDeathTest, ASecondFreeIsReported) {
  Huge* const huge = blocks_.Allocate(kMiB, 1);
  blocks_.Deallocate(huge);
  EXPECT_EQ(HugeBlocks::Of(huge->start), nullptr);
  EXPECT_EQ(blocks_.Containing(huge->start), huge);
  EXPECT_EXIT(blocks_.Deallocate(huge), testing::KilledBySignal(SIGABRT),
              "quarry: free of 0x[0-9a-f]+, a large block that is already "
              "free, aborting\n$");
}

TEST_F(HugeBlocksDeathTest, VerifyFindsABrokenInvariant) {
  Huge* const huge = blocks_.Allocate(kMiB, 1);
  huge->bytes += PageBytes();
  EXPECT_EXIT(blocks_.Verify(), testing::KilledBySignal(SIGABRT),
              "check failed");
  huge->bytes -= PageBytes();
  blocks_.Deallocate(huge);
}

}  // namespace
}  // namespace quarry
