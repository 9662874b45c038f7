// The figures of GatherStatistics(), and the two settings that the heap itself
// looks at.
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <iterator>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "alloc/heap.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/racing_copy.h"
#include "tcache/thread_life.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/in_child.h"
#include "tests/arena/refuse_call.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

using Random = std::mt19937_64;

// The figures are exact only while no other thread runs.
const bool no_thread = (settings.maintenance = false, true);

size_t RandomBytes(Random& random) {
  return random() % (size_t{1} << (4 + random() % 20));
}

TEST(HeapStatistics, LiveBytesFollowEachCall) {
  for (const size_t bytes : kSizes) {
    SCOPED_TRACE(bytes);
    const size_t before = GatherStatistics().live_bytes;
    char* const block = Allocate(bytes);
    EXPECT_EQ(GatherStatistics().live_bytes, before + UsableBytes(block));
    char* const moved = static_cast<char*>(Reallocate(block, 3 * bytes + 1));
    EXPECT_EQ(GatherStatistics().live_bytes, before + UsableBytes(moved));
    Deallocate(moved);
    EXPECT_EQ(GatherStatistics().live_bytes, before);
    DeallocateAlignedSized(AllocateAligned(bytes, kMiB), bytes, kMiB);
    EXPECT_EQ(GatherStatistics().live_bytes, before);
  }
}

// So many frees in a row that the class turns cold, and some are only noted: an
// odd number, so that the notes are never all in their slabs by chance.
TEST(HeapStatistics, LiveBytesFollowTheFreesOfAColdClass) {
  const size_t before = GatherStatistics().live_bytes;
  std::vector<void*> blocks(5001);
  for (void*& block : blocks) block = AllocateSlow(48);
  for (size_t freed = 0; freed < blocks.size(); ++freed) {
    Deallocate(blocks[freed]);
    if (freed % 101 == 0) {
      ASSERT_EQ(GatherStatistics().live_bytes,
                before + (blocks.size() - freed - 1) * 48);
    }
  }
  EXPECT_EQ(GatherStatistics().live_bytes, before);
}

TEST(HeapStatistics, EachRoomHasItsFigure) {
  const HeapStatistics before = GatherStatistics();
  char* const small = Allocate(100);
  char* const medium = Allocate(200000);
  char* const huge = Allocate(100 * kMiB);
  const HeapStatistics during = GatherStatistics();
  ExpectBalanced(during);
  EXPECT_EQ(during.live_small_bytes, before.live_small_bytes + 112);
  EXPECT_EQ(during.live_medium_bytes,
            before.live_medium_bytes + UsableBytes(medium));
  EXPECT_EQ(during.live_huge_bytes, before.live_huge_bytes + 100 * kMiB);
  EXPECT_EQ(during.live_huge_blocks, before.live_huge_blocks + 1);
  EXPECT_GE(during.threads, 1u);
  EXPECT_GE(during.arenas, 1u);
  EXPECT_GE(during.segments, 1u);
  EXPECT_GE(during.mappings, during.segments + during.live_huge_blocks);
  EXPECT_GE(during.slabs, 1u);
  EXPECT_GT(during.os_map_calls, 0u);
  for (char* block : {small, medium, huge}) Deallocate(block);
  const HeapStatistics after = GatherStatistics();
  EXPECT_EQ(after.live_bytes, before.live_bytes);
  EXPECT_EQ(after.live_huge_blocks, before.live_huge_blocks);
  EXPECT_GE(after.peak_mapped_bytes, during.mapped_bytes);
}

TEST(HeapStatistics, AFreedHugeBlockIsKeptForReuse) {
  // Other tests' blocks may have raised the threshold, and this one would.
  settings.mmap_threshold_bytes = 4 * kMiB;
  settings.mmap_threshold_adapts = false;
  ReleaseMemory(0);
  EXPECT_EQ(GatherStatistics().huge_cached_bytes, 0u);
  Deallocate(Allocate(8 * kMiB));
  EXPECT_EQ(GatherStatistics().huge_cached_bytes, 8 * kMiB);
  ReleaseMemory(0);
  EXPECT_EQ(GatherStatistics().huge_cached_bytes, 0u);
  settings.mmap_threshold_adapts = true;
}

void ExpectNoneWentDown(const HeapStatistics& before,
                        const HeapStatistics& after) {
  EXPECT_GE(after.peak_mapped_bytes, before.peak_mapped_bytes);
  EXPECT_GE(after.os_map_calls, before.os_map_calls);
  EXPECT_GE(after.os_unmap_calls, before.os_unmap_calls);
  EXPECT_GE(after.os_purge_calls, before.os_purge_calls);
  EXPECT_GE(after.refills, before.refills);
  EXPECT_GE(after.flushes, before.flushes);
  EXPECT_GE(after.remote_frees, before.remote_frees);
  EXPECT_GE(after.drained_blocks, before.drained_blocks);
  EXPECT_GE(after.slabs_made, before.slabs_made);
  EXPECT_GE(after.slabs_returned, before.slabs_returned);
  EXPECT_GE(after.adoptions, before.adoptions);
}

void ExpectClassesAddUp(const HeapStatistics& s) {
  ASSERT_LE(s.size_classes, HeapStatistics::kMaxSizeClasses);
  size_t live = 0, slabs = 0;
  for (size_t i = 0; i < s.size_classes; ++i) {
    const SizeClassStatistics& c = s.by_class[i];
    if (i > 0) {
      EXPECT_LT(s.by_class[i - 1].block_bytes, c.block_bytes);
    }
    live += c.live_blocks * c.block_bytes;
    slabs += c.slabs;
  }
  EXPECT_EQ(live, s.live_small_bytes);
  EXPECT_EQ(slabs, s.slabs);
}

TEST(HeapStatistics, TheFiguresAddUpAfterRandomCalls) {
  Random random(TestSeed());
  std::vector<char*> blocks;
  HeapStatistics before = GatherStatistics();
  size_t live_bytes = before.live_bytes;
  for (size_t step = 0; step < Steps(20000); ++step) {
    switch (blocks.empty() ? 0 : random() % 5) {
      case 0:
      case 1:
        blocks.push_back(Allocate(RandomBytes(random)));
        live_bytes += UsableBytes(blocks.back());
        break;
      case 2:
        blocks.push_back(static_cast<char*>(AllocateAligned(
            RandomBytes(random), size_t{1} << random() % 20)));
        live_bytes += UsableBytes(blocks.back());
        break;
      case 3: {
        char*& block = blocks[random() % blocks.size()];
        live_bytes -= UsableBytes(block);
        block =
            static_cast<char*>(Reallocate(block, 1 + RandomBytes(random)));
        live_bytes += UsableBytes(block);
        break;
      }
      default:
        std::swap(blocks[random() % blocks.size()], blocks.back());
        live_bytes -= UsableBytes(blocks.back());
        // As often on a thread that does not own it, which is then drained.
        if (random() % 50 == 0) {
          std::thread([block = blocks.back()] { Deallocate(block); }).join();
          FlushThread();
        } else {
          Deallocate(blocks.back());
        }
        blocks.pop_back();
    }
    if (random() % 2000 == 0) ReleaseMemory(random() % 2 * kMiB);
    if (step % 50 != 0) continue;
    const HeapStatistics now = GatherStatistics();
    ExpectBalanced(now);
    ExpectClassesAddUp(now);
    ExpectNoneWentDown(before, now);
    ASSERT_EQ(now.live_bytes, live_bytes);
    ASSERT_FALSE(HasFailure()) << "at step " << step;
    before = now;
  }
  for (char* block : blocks) Deallocate(block);
}

TEST(HeapStatistics, ThreadsShowWhileTheyHaveACache) {
  const size_t before = GatherStatistics().threads;
  std::thread([before] {
    EXPECT_EQ(GatherStatistics().threads, before);
    Deallocate(Allocate(100));
    EXPECT_EQ(GatherStatistics().threads, before + 1);
  }).join();
  EXPECT_EQ(GatherStatistics().threads, before);
}

TEST(HeapStatistics, TheCacheOfThreadsThatHaveEndedIsNoThread) {
  EXPECT_EQ(InChild([] {
              Deallocate(Allocate(100));
              QUARRY_CHECK(GatherStatistics().threads == 1);
              QUARRY_CHECK(StrayCache() != nullptr);
              QUARRY_CHECK(GatherStatistics().threads == 1);
            }),
            0);
}

TEST(HeapStatistics, AdoptionsAreCounted) {
  const size_t parked_caches = settings.parked_caches.exchange(0);
  char* left = nullptr;
  std::thread([&left] { left = Allocate(777); }).join();
  const HeapStatistics before = GatherStatistics();
  EXPECT_GE(before.slabs_orphaned, 1u);
  ExpectBalanced(before);
  // Whose arena is the same, sooner or later.
  size_t adoptions = 0;
  for (int i = 0; i < 1000 && adoptions == 0; ++i) {
    std::thread([&] {
      Deallocate(Allocate(777));
      adoptions = GatherStatistics().adoptions - before.adoptions;
    }).join();
  }
  EXPECT_GT(adoptions, 0u);
  Deallocate(left);
  EXPECT_EQ(GatherStatistics().slabs_orphaned, 0u);
  settings.parked_caches = parked_caches;
}

// What a parked cache has is free, and its thread is gone.
TEST(HeapStatistics, ParkedCachesHoldNothingThatIsLive) {
  FlushThread();
  const HeapStatistics before = GatherStatistics();
  char* left[20];
  std::thread([&left] {
    char* freed[1000];
    for (char*& p : freed) p = Allocate(777);
    for (char*& p : left) p = Allocate(777);
    for (char* p : freed) Deallocate(p);
  }).join();
  HeapStatistics after = GatherStatistics();
  EXPECT_EQ(after.live_bytes, before.live_bytes + std::size(left) * GoodBytes(777));
  EXPECT_EQ(after.threads, before.threads);
  EXPECT_EQ(after.slabs_orphaned, 0u);
  ExpectBalanced(after);
  VerifyHeap();
  for (char* p : left) Deallocate(p);
  after = GatherStatistics();
  EXPECT_EQ(after.live_bytes, before.live_bytes);
  ReleaseMemory(0);
  after = GatherStatistics();
  EXPECT_EQ(after.live_bytes, before.live_bytes);
  EXPECT_EQ(after.cached_bytes, 0u) << "the cache is closed";
  VerifyHeap();
}

// Runs `body` while a thread rests that has freed blocks: in magazines and spares, in
// the depot and the notes of a cold class, and of this thread, which it has yet to pass on.
// Told what was live before it freed anything, and how much that was.
template <typename Body>
void WhileAThreadHasFreed(Body body) {
  std::vector<char*> foreign(100);
  for (char*& block : foreign) block = Allocate(300);
  FlushThread();  // What this thread has at hand is hidden from others, too.
  std::atomic<int> step{0};
  size_t freed_bytes = 0;
  std::thread other([&] {
    std::vector<char*> blocks;
    for (const size_t bytes : {16, 100, 1000, 10'000, 60'000}) {
      for (int i = 0; i < 40; ++i) blocks.push_back(Allocate(bytes));
    }
    for (int i = 0; i < 20'001; ++i) blocks.push_back(Allocate(48));
    for (const char* block : blocks) freed_bytes += UsableBytes(block);
    for (const char* block : foreign) freed_bytes += UsableBytes(block);
    step = 1;
    while (step != 2) std::this_thread::yield();
    for (char* block : blocks) Deallocate(block);
    for (char* block : foreign) Deallocate(block);
    step = 3;
    while (step != 4) std::this_thread::yield();
  });
  while (step != 1) std::this_thread::yield();
  const HeapStatistics before = GatherStatistics();
  step = 2;
  while (step != 3) std::this_thread::yield();
  body(before.live_bytes, freed_bytes);
  step = 4;
  other.join();
}

TEST(HeapStatistics, WhatAnotherThreadHasAtHandIsFree) {
  int from = 1, to = 0;
  const RacingPiece pieces[] = {{&from, &to, sizeof(to)}};
  if (!CopyRacing(pieces)) GTEST_SKIP() << "no process_vm_readv()";
  WhileAThreadHasFreed([](size_t live_before, size_t freed_bytes) {
    const HeapStatistics after = GatherStatistics();
    EXPECT_EQ(after.live_bytes, live_before - freed_bytes);
    ExpectBalanced(after);
    ExpectClassesAddUp(after);
  });
}

TEST(HeapStatistics, WhereTheSystemHidesItIsCountedAsHeld) {
  WhileAThreadHasFreed([](size_t live_before, size_t freed_bytes) {
    // A filter is its thread's.
    std::thread filtered([=] {
      if (!RefuseCall(SYS_process_vm_readv)) GTEST_SKIP() << "no seccomp()";
      const HeapStatistics after = GatherStatistics();
      EXPECT_GT(after.live_bytes, live_before - freed_bytes);
      EXPECT_LT(after.live_bytes, live_before);
      ExpectBalanced(after);
    });
    filtered.join();
  });
}

// What is counted at different moments does not fit together, but is never less than nothing.
TEST(HeapStatistics, NoFigureIsNegativeWhileThreadsRun) {
  std::atomic<bool> is_over = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&is_over] {
      while (!is_over) {
        std::vector<char*> blocks;
        for (size_t bytes = 16; bytes < kMiB; bytes += bytes / 4) {
          for (int n = 0; n < 8; ++n) blocks.push_back(Allocate(bytes));
        }
        for (char* block : blocks) Deallocate(block);
        FlushThread();
      }
    });
  }
  for (int i = 0; i < 300; ++i) {
    const HeapStatistics s = GatherStatistics();
    // In all, as in no heap of this test.
    constexpr size_t kMost = size_t{1} << 40;
    EXPECT_LT(s.live_bytes, kMost);
    EXPECT_LT(s.live_small_bytes, kMost);
    EXPECT_LT(s.live_medium_bytes, kMost);
    EXPECT_LT(s.live_huge_bytes, kMost);
    EXPECT_LT(s.cached_bytes, kMost);
    EXPECT_LT(s.slab_free_bytes, kMost);
    EXPECT_LT(s.arena_free_bytes, kMost);
    EXPECT_LT(s.huge_cached_bytes, kMost);
  }
  is_over = true;
  for (std::thread& thread : threads) thread.join();
}

// A child has no other threads to ask the system about, and may have shut itself in.
TEST(HeapStatistics, AProcessOfOneThreadDoesNotAskTheSystem) {
  enum { kDone, kNoFilter, kLost };
  WhileAThreadHasFreed([](size_t live_before, size_t freed_bytes) {
    const int status = InChild([=] {
      if (!RefuseCall(SYS_process_vm_readv, SECCOMP_RET_KILL_PROCESS)) {
        _exit(kNoFilter);
      }
      const size_t live = GatherStatistics().live_bytes;
      // Of what a vanished thread was about to free, some may be lost.
      _exit(live <= live_before - freed_bytes + 128 * 1024 ? kDone : kLost);
    });
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == kNoFilter) GTEST_SKIP() << "no seccomp()";
    EXPECT_EQ(WEXITSTATUS(status), kDone);
  });
}

// --- settings.perturb_byte. ---

// Runs `body` on a thread for which the setting holds.
template <typename Body>
void WithPerturbation(uint8_t byte, Body body) {
  std::thread([&] {
    char* const before = Allocate(48);  // The thread is on its fast path.
    settings.perturb_byte = byte;
    ApplyPerturbation();
    body();
    Deallocate(before);
    settings.perturb_byte = 0;
  }).join();
}

TEST(HeapPerturbation, FreshBlocksHoldTheComplement) {
  WithPerturbation(0x5a, [] {
    for (const size_t bytes : kSizes) {
      char* const first = Allocate(bytes);
      EXPECT_TRUE(AllBytesAre(first, bytes, 0xa5)) << bytes;
      char* const second = static_cast<char*>(AllocateAligned(bytes, 256));
      EXPECT_TRUE(AllBytesAre(second, bytes, 0xa5)) << bytes;
      char* const third = static_cast<char*>(AllocateUnaligned8(bytes));
      EXPECT_TRUE(AllBytesAre(third, bytes, 0xa5)) << bytes;
      char* const zeroed = static_cast<char*>(AllocateZeroed(bytes));
      EXPECT_TRUE(AllBytesAre(zeroed, bytes, 0)) << bytes;
      DeallocateSized(first, bytes);
      DeallocateAlignedSized(second, bytes, 256);
      Deallocate(third);
      Deallocate(zeroed);
    }
  });
}

TEST(HeapPerturbation, FreedBlocksHoldTheByte) {
  WithPerturbation(0x5a, [] {
    for (const size_t bytes : {8, 100, 5000, 12000, 500000}) {
      char* const keep = Allocate(bytes);  // So that no memory is given back.
      char* const block = Allocate(bytes);
      const size_t usable = UsableBytes(block);
      memset(block, 1, usable);
      Deallocate(block);
      EXPECT_TRUE(AllBytesAre(block, usable, 0x5a)) << bytes;
      Deallocate(keep);
    }
  });
}

// A thread that left the fast path stays there, and keeps nothing: what it frees is in
// its slab at once, whosever that is.
TEST(HeapPerturbation, FreesAreSeenAtOnceAfterItEnds) {
  char* const foreign = Allocate(48);
  WithPerturbation(1, [foreign] {
    char* const own = Allocate(48);
    settings.perturb_byte = 0;
    Slab* const slab = Slab::Of(own);
    ASSERT_NE(slab, Slab::Of(foreign));
    EXPECT_FALSE(slab->IsFree(slab->IndexOf(own)));
    Deallocate(own);
    EXPECT_TRUE(slab->IsFree(slab->IndexOf(own)));
    Deallocate(foreign);
    // Its owner may have had it taken in, by a call of this thread, as no other thread
    // gives memory back here.
    const Slab* const others = Slab::Of(foreign);
    const size_t index = others->IndexOf(foreign);
    EXPECT_TRUE(others->remote.IsMarked(index) || others->IsFree(index));
  });
  FlushThread();
  VerifyHeap();
}

TEST(HeapPerturbation, TheHeapIsThatOfBefore) {
  const size_t live_before = GatherStatistics().live_bytes;
  WithPerturbation(1, [] {
    std::vector<char*> blocks;
    for (size_t bytes = 0; bytes < 3000; ++bytes) {
      blocks.push_back(Allocate(bytes));
      Content::Write(blocks.back(), bytes, bytes);
    }
    VerifyHeap();
    for (size_t bytes = 0; bytes < 3000; ++bytes) {
      char* const moved =
          static_cast<char*>(Reallocate(blocks[bytes], 2 * bytes + 1));
      EXPECT_TRUE(Content::IsIntact(moved, bytes, bytes));
      DeallocateSized(moved, 2 * bytes + 1);
    }
    VerifyHeap();
    ExpectBalanced(GatherStatistics());
  });
  EXPECT_EQ(GatherStatistics().live_bytes, live_before);
  // A thread that starts after it was taken back knows nothing of it.
  std::thread([] {
    char* const block = Allocate(100);
    memset(block, 7, 100);
    Deallocate(block);
    EXPECT_EQ(Allocate(100), block);
    EXPECT_EQ(block[99], 7);
    Deallocate(block);
  }).join();
}

}  // namespace
}  // namespace quarry
