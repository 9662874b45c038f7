// What the heap says of each misuse before it aborts, word for word.
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "alloc/heap.h"
#include "arena/page_source.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/size_classes.h"
#include "tcache/slab.h"
#include "tcache/thread_cache.h"
#include "tests/alloc/heap_support.h"

namespace quarry {
namespace {

// A death test is a fork, which should copy a process of one thread.
const bool no_thread = (settings.maintenance = false, true);

// The whole of what goes to stderr, and the way the process ends.
#define EXPECT_REPORT(statement, text)                     \
  EXPECT_EXIT(statement, testing::KilledBySignal(SIGABRT), \
              testing::Eq("quarry: " + (text) + ", aborting\n"))

std::string Hex(const void* p) {
  LineBuffer line;
  line.AppendHex(p);
  return std::string(line.text(), line.bytes());
}

std::string Number(size_t number) { return std::to_string(number); }

// "free of 0x…"
std::string Of(const std::string& call, const void* p) {
  return call + " of " + Hex(p);
}

std::string DoubleFree(const char* p) {
  const Slab* const slab = Slab::Of(p);
  return Of("double free", p) + " (class " + Number(slab->block_bytes()) +
         ", slab " + Hex(slab->start()) + ")";
}

std::string Interior(const std::string& call, const char* p, const char* block,
                     size_t block_bytes) {
  return Of(call, p) + ", which is " +
         Number(static_cast<size_t>(p - block)) + " bytes inside the " +
         Number(block_bytes) + "-byte block " + Hex(block);
}

std::string Foreign(const std::string& call, const void* p) {
  return Of(call, p) + ", which Quarry did not allocate";
}

std::string ForeignOrGone(const std::string& call, const void* p) {
  return Foreign(call, p) + " or has unmapped since";
}

std::string OnStack(const std::string& call, const void* p) {
  return Of(call, p) + ", which is on the stack of this thread";
}

std::string Misaligned(const std::string& call, const void* p) {
  return Of(call, p) + ", which is not a multiple of 8";
}

std::string AlreadyFree(const std::string& call, const void* p) {
  return Of(call, p) + ", a large block that is already free";
}

std::string WrongSize(const void* p, size_t given, size_t block_bytes) {
  return Of("sized free", p) + " as " + Number(given) +
         " bytes, but its block has " + Number(block_bytes) +
         " (QUARRY_OPTIONS=check_sizes:0 allows it)";
}

// Frees `p` as a thread that does not own its slab.
void FreeElsewhere(void* p) {
  std::thread([p] { Deallocate(p); }).join();
}

// The same as a thread that holds what it frees of others, and marks it later.
void FreeElsewhereHeld(void* p) {
  std::thread([p] {
    Deallocate(Allocate(64));  // Now it has a cache.
    Deallocate(p);
    FlushThread();
  }).join();
}

void FreeAll(const std::vector<char*>& blocks) {
  for (char* block : blocks) Deallocate(block);
}

// Blocks of one size. The last two are in one slab, which is kept so when one of these
// is free.
std::vector<char*> AllocateNeighbours(size_t bytes) {
  std::vector<char*> blocks = {Allocate(bytes)};
  do {
    blocks.push_back(Allocate(bytes));
  } while (Slab::Of(blocks.back()) != Slab::Of(blocks.end()[-2]));
  return blocks;
}

// Two and more in a slab.
constexpr size_t kSmallBytes[] = {16, 48, 1000, 8192, 10000, kSmallMaxBytes / 2};
constexpr size_t kRunBytes = 400000;
constexpr size_t kHugeBytes = 8 * kMiB;

// --- Double frees. ---

TEST(HeapDeathTest, DoubleFreeAtOnce) {
  for (const size_t bytes : kSmallBytes) {
    char* const p = Allocate(bytes);
    EXPECT_REPORT((Deallocate(p), Deallocate(p)), DoubleFree(p));
    EXPECT_REPORT((Deallocate(p), DeallocateSized(p, bytes)), DoubleFree(p));
    EXPECT_REPORT((DeallocateSized(p, bytes), DeallocateSized(p, bytes)),
                  DoubleFree(p));
    Deallocate(p);
  }
}

TEST(HeapDeathTest, DoubleFreeOfABlockThatIsBackInItsSlab) {
  for (const size_t bytes : kSmallBytes) {
    const std::vector<char*> blocks = AllocateNeighbours(bytes);
    char* const p = blocks.back();
    EXPECT_REPORT((Deallocate(p), FlushThread(), Deallocate(p), FlushThread()),
                  DoubleFree(p));
    FreeAll(blocks);
  }
}

TEST(HeapDeathTest, DoubleFreeAtFlush) {
  for (const size_t bytes : kSmallBytes) {
    char* const p = Allocate(bytes);
    char* const q = Allocate(bytes);
    char* const r = Allocate(bytes);
    EXPECT_REPORT((FreeAll({p, q, r, p}), FlushThread()), DoubleFree(p));
    EXPECT_REPORT((FreeAll({r, p, q, p}), FlushThread()), DoubleFree(p));
    EXPECT_REPORT((FreeAll({p, q, p, r}), FlushThread()), DoubleFree(p));
    FreeAll({p, q, r});
  }
}

// Of whole slabs, which may go back in between.
TEST(HeapDeathTest, DoubleFreeOfABlockThatIsASlab) {
  char* const p = Allocate(kSmallMaxBytes);
  char* const q = Allocate(kSmallMaxBytes);
  EXPECT_REPORT((Deallocate(p), Deallocate(p)), DoubleFree(p));
  EXPECT_REPORT((FreeAll({q, p, q, p}), FlushThread()), DoubleFree(p));
  EXPECT_REPORT((FreeAll({p, q}), FlushThread(), Deallocate(p)),
                AlreadyFree("free", p));
  // By another thread as well, whose mark waits for the owner.
  EXPECT_REPORT((Deallocate(p), Deallocate(q), FreeElsewhere(p), FlushThread()),
                DoubleFree(p));
  FreeAll({p, q});
}

// Or later, if its cache is parked.
TEST(HeapDeathTest, DoubleFreeAtTheExitOfTheThread) {
  EXPECT_EXIT(std::thread([] {
                settings.parked_caches = 0;
                char* const p = Allocate(48);
                char* const q = Allocate(48);
                FreeAll({p, q, p});
              }).join(),
              testing::KilledBySignal(SIGABRT), "^quarry: double free of ");
}

TEST(HeapDeathTest, DoubleFreeElsewhere) {
  for (const size_t bytes : kSmallBytes) {
    const std::vector<char*> blocks = AllocateNeighbours(bytes);
    char* const p = blocks.back();
    // The first may be drained when the second is marked.
    EXPECT_REPORT((FreeElsewhere(p), FreeElsewhere(p), FlushThread()), DoubleFree(p));
    EXPECT_REPORT((FreeElsewhere(p), FreeElsewhereHeld(p), FlushThread()),
                  DoubleFree(p));
    EXPECT_REPORT((FreeElsewhereHeld(p), FreeElsewhereHeld(p), FlushThread()),
                  DoubleFree(p));
    EXPECT_REPORT(std::thread([p] {
                    Deallocate(Allocate(64));
                    Deallocate(p);
                    Deallocate(p);
                  }).join(),
                  DoubleFree(p));
    FreeAll(blocks);
  }
}

TEST(HeapDeathTest, DoubleFreeHereAndElsewhere) {
  for (const size_t bytes : kSmallBytes) {
    const std::vector<char*> blocks = AllocateNeighbours(bytes);
    char* const p = blocks.back();
    EXPECT_REPORT((Deallocate(p), FreeElsewhere(p), FlushThread()),
                  DoubleFree(p));
    EXPECT_REPORT((FreeElsewhere(p), Deallocate(p), FlushThread()),
                  DoubleFree(p));
    FreeAll(blocks);
  }
}

TEST(HeapDeathTest, DoubleFreeOfAPageRun) {
  char* const p = Allocate(kRunBytes);
  EXPECT_REPORT((Deallocate(p), Deallocate(p)), AlreadyFree("free", p));
  EXPECT_REPORT((Deallocate(p), DeallocateSized(p, kRunBytes)),
                AlreadyFree("sized free", p));
  EXPECT_REPORT((Deallocate(p), FreeElsewhere(p)), AlreadyFree("free", p));
  // Joined with a neighbour, it is the start of no run any more.
  char* const q = Allocate(kRunBytes);
  EXPECT_REPORT((FreeAll({p, q, q})), AlreadyFree("free", q));
  FreeAll({p, q});
}

// Its magazine is a ring then: never empty, so never filled, and never flushed.
TEST(HeapDeathTest, DoubleFreeWithAnotherInBetweenIsFoundWhileOtherSizesAreTaken) {
  EXPECT_EXIT(
      {
        char* const p = Allocate(48);
        char* const q = Allocate(48);
        FlushThread();
        for (char* block : {p, q, p}) Deallocate(block);
        // The program has the same two for as long as it asks.
        for (int i = 0; i < 1000; ++i) static_cast<void>(Allocate(48));
        for (int i = 0; i < 20000; ++i) static_cast<void>(Allocate(1000));
      },
      testing::KilledBySignal(SIGABRT), "^quarry: double free of ");
}

TEST(HeapDeathTest, DoubleFreeOfAHugeBlock) {
  // One that raised the threshold would not be kept for reuse.
  settings.mmap_threshold_adapts = false;
  char* const p = Allocate(kHugeBytes);
  EXPECT_REPORT((Deallocate(p), Deallocate(p)), AlreadyFree("free", p));
  EXPECT_REPORT((Deallocate(p), DeallocateSized(p, kHugeBytes)),
                AlreadyFree("sized free", p));
  Deallocate(p);
  settings.mmap_threshold_adapts = true;
  // One that is not kept is gone at once, and its address with it.
  settings.decay_ms = 0;
  char* const unmapped = Allocate(100 * kMiB);
  EXPECT_REPORT((Deallocate(unmapped), Deallocate(unmapped)),
                ForeignOrGone("free", unmapped));
  Deallocate(unmapped);
  settings.decay_ms = Settings().decay_ms.load();
}

// --- Pointers that are not the start of a block. ---

TEST(HeapDeathTest, InteriorPointerOfASmallBlock) {
  for (const size_t bytes : kSmallBytes) {
    char* const p = Allocate(bytes);
    const size_t usable = UsableBytes(p);
    for (const size_t offset : {size_t{1}, size_t{8}, usable - 1}) {
      char* const inside = p + offset;
      EXPECT_REPORT(Deallocate(inside), Interior("free", inside, p, usable));
      EXPECT_REPORT(FreeElsewhere(inside), Interior("free", inside, p, usable));
      EXPECT_REPORT(FreeElsewhereHeld(inside),
                    Interior("free", inside, p, usable));
      EXPECT_REPORT(static_cast<void>(Reallocate(inside, 100)),
                    Interior("realloc", inside, p, usable));
      EXPECT_REPORT(UsableBytes(inside),
                    Interior("usable size", inside, p, usable));
      // A size of another class, so that the pointer is looked at.
      EXPECT_REPORT(DeallocateSized(inside, 2 * bytes),
                    Interior("sized free", inside, p, usable));
    }
    Deallocate(p);
  }
}

TEST(HeapDeathTest, InteriorPointerOfALargeBlock) {
  for (const size_t bytes : {kRunBytes, kHugeBytes}) {
    char* const p = Allocate(bytes);
    const size_t usable = UsableBytes(p);
    for (const size_t offset :
         {size_t{16}, PageBytes(), (usable / 2) & ~size_t{7}, usable - 8}) {
      char* const inside = p + offset;
      EXPECT_REPORT(Deallocate(inside), Interior("free", inside, p, usable));
      EXPECT_REPORT(DeallocateSized(inside, bytes),
                    Interior("sized free", inside, p, usable));
      EXPECT_REPORT(static_cast<void>(Reallocate(inside, 100)),
                    Interior("realloc", inside, p, usable));
      EXPECT_REPORT(UsableBytes(inside),
                    Interior("usable size", inside, p, usable));
    }
    EXPECT_REPORT(Deallocate(p + 3), Misaligned("free", p + 3));
    EXPECT_REPORT(static_cast<void>(Reallocate(p + 3, 100)),
                  Misaligned("realloc", p + 3));
    EXPECT_REPORT(UsableBytes(p + 3), Misaligned("usable size", p + 3));
    Deallocate(p);
  }
}

// What is left of a slab behind its last block.
TEST(HeapDeathTest, PointerBehindTheLastBlockOfASlab) {
  for (const size_t bytes : {size_t{48}, size_t{1280}, size_t{10000}}) {
    char* const p = Allocate(bytes);
    const Slab* const slab = Slab::Of(p);
    char* const tail = slab->BlockAt(slab->blocks());
    ASSERT_LT(tail, slab->start() + kSlabBytes);
    EXPECT_REPORT((Deallocate(tail), FlushThread()), Foreign("free", tail));
    EXPECT_REPORT(Deallocate(tail + 8), Foreign("free", tail + 8));
    EXPECT_REPORT(FreeElsewhere(tail), Foreign("free", tail));
    EXPECT_REPORT(FreeElsewhereHeld(tail), Foreign("free", tail));
    EXPECT_REPORT(static_cast<void>(Reallocate(tail, 100)),
                  Foreign("realloc", tail));
    EXPECT_REPORT(UsableBytes(tail), Foreign("usable size", tail));
    Deallocate(p);
  }
}

// Slabs of 8-byte blocks end in the middle: their summary has no bits for more.
TEST(HeapDeathTest, PointerIntoTheRestOfASlabOfTheSmallestBlocks) {
  char* const p = static_cast<char*>(AllocateUnaligned8(8));
  const Slab* const slab = Slab::Of(p);
  char* const end = slab->start() + kSlabBytes;
  ASSERT_LT(slab->BlockAt(slab->blocks()), end);
  for (char* const rest : {slab->BlockAt(slab->blocks()), end - 8}) {
    EXPECT_REPORT((Deallocate(rest), FlushThread()), Foreign("free", rest));
    EXPECT_REPORT(FreeElsewhere(rest), Foreign("free", rest));
    EXPECT_REPORT(FreeElsewhereHeld(rest), Foreign("free", rest));
  }
  Deallocate(p);
}

TEST(HeapDeathTest, ABlockThatWasNeverGivenOut) {
  for (const size_t bytes : {48, 10000}) {
    char* const p = Allocate(bytes);
    const Slab* const slab = Slab::Of(p);
    char* const fresh = slab->BlockAt(slab->blocks() - 1);
    ASSERT_FALSE(slab->IsGivenOut(fresh));
    EXPECT_REPORT((Deallocate(fresh), FlushThread()), DoubleFree(fresh));
    EXPECT_REPORT((FreeElsewhere(fresh), FlushThread()), DoubleFree(fresh));
    Deallocate(p);
  }
}

TEST(HeapDeathTest, AddressOfAFreePage) {
  char* const p = Allocate(kRunBytes);
  char* const q = Allocate(kRunBytes);
  Deallocate(q);
  char* const page = q + 4 * PageBytes();
  EXPECT_REPORT(Deallocate(page), AlreadyFree("free", page));
  EXPECT_REPORT(DeallocateSized(page, 100), AlreadyFree("sized free", page));
  EXPECT_REPORT(static_cast<void>(Reallocate(page, 100)),
                AlreadyFree("realloc", page));
  EXPECT_REPORT(UsableBytes(page), AlreadyFree("usable size", page));
  Deallocate(p);
}

void ExpectForeign(char* p, decltype(Foreign) report = Foreign) {
  SCOPED_TRACE(Hex(p));
  EXPECT_REPORT(Deallocate(p), report("free", p));
  EXPECT_REPORT(DeallocateSized(p, 48), report("sized free", p));
  EXPECT_REPORT(DeallocateAlignedSized(p, 100, 32), report("sized free", p));
  EXPECT_REPORT(DeallocateAlignedSized(p, 100, kMiB), report("sized free", p));
  EXPECT_REPORT(static_cast<void>(Reallocate(p, 100)), report("realloc", p));
  EXPECT_REPORT(UsableBytes(p), report("usable size", p));
  EXPECT_REPORT(FreeElsewhere(p), report("free", p));
}

TEST(HeapDeathTest, PointersThatQuarryNeverGaveOut) {
  Deallocate(Allocate(1));  // Until then one address is not to be asked for: kNowhere.
  alignas(16) static char global[64];
  ExpectForeign(global);
  // Where nothing ever is.
  for (const uintptr_t address :
       {uintptr_t{8}, uintptr_t{0xfffffffffffffff8}, uintptr_t{0xffff800000000000},
        uintptr_t{0x8000000000000000}, uintptr_t{0x1000000000000}}) {
    ExpectForeign(reinterpret_cast<char*>(address));
  }
  // Where a block could have been. Sanitizers have some of it.
  for (const uintptr_t address :
       {uintptr_t{0x10000}, uintptr_t{0xdeadbee8}, uintptr_t{0x600000000008}}) {
    void* const page = reinterpret_cast<void*>(address & -PageBytes());
    const bool is_mapped = msync(page, 1, MS_ASYNC) == 0;
    ExpectForeign(reinterpret_cast<char*>(address), is_mapped ? Foreign : ForeignOrGone);
  }
  // In its midst, so that no thread's stack is just below.
  constexpr size_t kMappingBytes = 32 * kMiB;
  void* const mapping = mmap(nullptr, kMappingBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ExpectForeign(static_cast<char*>(mapping) + kMappingBytes / 2);
  munmap(mapping, kMappingBytes);
  // Another malloc's.
  void* const other = malloc(100);
  ExpectForeign(static_cast<char*>(other));
  free(other);
}

TEST(HeapDeathTest, PointersToTheStack) {
  char* const p = static_cast<char*>(__builtin_frame_address(0)) + 64;
  EXPECT_REPORT(Deallocate(p), OnStack("free", p));
  EXPECT_REPORT(DeallocateSized(p, 48), OnStack("sized free", p));
  EXPECT_REPORT(static_cast<void>(Reallocate(p, 100)), OnStack("realloc", p));
  EXPECT_REPORT(UsableBytes(p), OnStack("usable size", p));
  EXPECT_REPORT(Deallocate(p + 1), Misaligned("free", p + 1));
}

// --- Sizes. ---

TEST(HeapDeathTest, WrongSizeOfASmallBlock) {
  for (const size_t bytes : kSmallBytes) {
    char* const p = Allocate(bytes);
    const size_t usable = UsableBytes(p);
    std::vector<size_t> wrong = {usable + 1, 100 * kMiB, 2048 * kMiB + bytes};
    if (bytes > 16) {
      wrong.push_back(MinRequestBytes(ClassOf(bytes)) - 1);
      wrong.push_back(0);
    }
    for (const size_t given : wrong) {
      EXPECT_REPORT(DeallocateSized(p, given), WrongSize(p, given, usable));
      EXPECT_REPORT(std::thread([&] { DeallocateSized(p, given); }).join(),
                    WrongSize(p, given, usable));
      EXPECT_REPORT(DeallocateAlignedSized(p, given, 16),
                    WrongSize(p, given, usable));
    }
    EXPECT_REPORT(DeallocateAlignedSized(p, bytes, kMiB),
                  WrongSize(p, bytes, usable));
    DeallocateSized(p, bytes);
  }
}

// Of so many blocks of `bytes` that the class turns cold with their frees, the one that
// is left.
char* OneOfAColdClass(size_t bytes) {
  std::vector<char*> blocks;
  for (int i = 0; i < 100000; ++i) blocks.push_back(Allocate(bytes));
  for (size_t i = 1; i < blocks.size(); ++i) DeallocateSized(blocks[i], bytes);
  EXPECT_EQ(ThreadCache::WarmMagazineOf(blocks.front()), nullptr) << "not cold";
  return blocks.front();
}

// No size passes at once.
TEST(HeapDeathTest, WrongSizeOfABlockOfAColdClass) {
  constexpr size_t kBytes = 48;
  char* const p = OneOfAColdClass(kBytes);
  for (const size_t given : {size_t{0}, kBytes + 1, kBytes - 16, 100 * kMiB,
                             4096 * kMiB + kBytes}) {
    EXPECT_REPORT(DeallocateSized(p, given), WrongSize(p, given, kBytes));
  }
  EXPECT_REPORT((DeallocateSized(p, kBytes), DeallocateSized(p, kBytes)),
                DoubleFree(p));
  DeallocateSized(p, kBytes);
  FlushThread();
}

TEST(HeapDeathTest, SizedFreeInsideABlockOfAColdClass) {
  constexpr size_t kBytes = 48;
  char* const p = OneOfAColdClass(kBytes);
  EXPECT_REPORT(DeallocateSized(p + 16, kBytes),
                Interior("sized free", p + 16, p, kBytes));
  DeallocateSized(p, kBytes);
  FlushThread();
}

TEST(HeapDeathTest, WrongSizeOfABlockWithAnAlignmentOf8) {
  char* const p = static_cast<char*>(AllocateUnaligned8(8));
  EXPECT_REPORT(DeallocateSized(p, 9), WrongSize(p, 9, 8));
  DeallocateSized(p, 8);
}

TEST(HeapDeathTest, WrongSizeOfALargeBlock) {
  for (const size_t bytes : {kRunBytes, kHugeBytes}) {
    char* const p = Allocate(bytes);
    const size_t usable = UsableBytes(p);
    for (const size_t given :
         {size_t{0}, size_t{100}, bytes / 2, usable + 1, ~size_t{0}}) {
      EXPECT_REPORT(DeallocateSized(p, given), WrongSize(p, given, usable));
      EXPECT_REPORT(DeallocateAlignedSized(p, given, kMiB),
                    WrongSize(p, given, usable));
    }
    DeallocateSized(p, bytes);
  }
}

TEST(HeapDeathTest, WrongSizesThatAreAllowedFreeTheBlock) {
  settings.check_sizes = false;
  const size_t live_bytes = GatherStatistics().live_bytes;
  for (const size_t bytes : {size_t{16}, size_t{48}, size_t{10000}, kRunBytes,
                             kHugeBytes}) {
    for (const size_t given : {size_t{0}, 2 * bytes + 1000, ~size_t{0}}) {
      DeallocateSized(Allocate(bytes), given);
      DeallocateAlignedSized(Allocate(bytes), given, kMiB);
      char* const p = Allocate(bytes);
      std::thread([p, given] { DeallocateSized(p, given); }).join();
    }
  }
  constexpr size_t kBytes = 48;
  char* const cold = OneOfAColdClass(kBytes);
  EXPECT_REPORT(DeallocateSized(cold + 16, 500),
                Interior("sized free", cold + 16, cold, kBytes));
  EXPECT_REPORT((DeallocateSized(cold, 0), DeallocateSized(cold, 500)),
                DoubleFree(cold));
  DeallocateSized(cold, 500);
  FlushThread();
  EXPECT_EQ(GatherStatistics().live_bytes, live_bytes);
  VerifyHeap();
  settings.check_sizes = true;
}

TEST(HeapDeathTest, WrongSizeOfAnAlignedBlock) {
  for (const size_t alignment : {size_t{64}, 64 * kKiB, 8 * kMiB}) {
    char* const p = static_cast<char*>(AllocateAligned(100, alignment));
    const size_t usable = UsableBytes(p);
    EXPECT_REPORT(DeallocateAlignedSized(p, 100000, alignment),
                  WrongSize(p, 100000, usable));
    DeallocateAlignedSized(p, 100, alignment);
  }
}

// --- Use after free. ---

TEST(HeapDeathTest, ReallocationOfAFreeBlock) {
  for (const size_t bytes : kSmallBytes) {
    char* const p = Allocate(bytes);
    EXPECT_REPORT((Deallocate(p), static_cast<void>(Reallocate(p, 3 * bytes))),
                  DoubleFree(p));
    Deallocate(p);
  }
  char* const run = Allocate(kRunBytes);
  EXPECT_REPORT((Deallocate(run), static_cast<void>(Reallocate(run, 10))),
                AlreadyFree("realloc", run));
  EXPECT_REPORT((Deallocate(run), UsableBytes(run)),
                AlreadyFree("usable size", run));
  Deallocate(run);
  // As in DoubleFreeOfAHugeBlock.
  settings.mmap_threshold_adapts = false;
  char* const huge = Allocate(kHugeBytes);
  EXPECT_REPORT((Deallocate(huge), static_cast<void>(Reallocate(huge, 10))),
                AlreadyFree("realloc", huge));
  EXPECT_REPORT((Deallocate(huge), UsableBytes(huge)),
                AlreadyFree("usable size", huge));
  Deallocate(huge);
  settings.mmap_threshold_adapts = true;
}

TEST(HeapDeathTest, AFreeBlockThatWasWrittenTo) {
  for (const size_t bytes : kSmallBytes) {
    char* const p = Allocate(bytes);
    char* const q = Allocate(bytes);
    EXPECT_REPORT((FreeAll({q, p}), memset(p, 0x41, 16), FlushThread()),
                  "the free block " + Hex(p) +
                      " was written to after its free");
    FreeAll({p, q});
  }
}

// --- Twice, of what a thread frees for another and may keep. ---

constexpr size_t kForeignBytes = 512;

size_t InMagazine() {
  return thread_state.cache->MagazineBlocks(ClassOf(kForeignBytes));
}

// Runs `misuse` in a thread that has just made pages resident for the class, and so keeps
// blocks of this thread's when its magazine is short of them.
void InAThreadThatKeeps(void (*misuse)(char* other, const std::vector<char*>& own)) {
  ReleaseMemory(0);
  char* const first = Allocate(kForeignBytes);
  char* const other = Allocate(kForeignBytes);
  std::thread([&] {
    std::vector<char*> own = {Allocate(kForeignBytes)};
    Deallocate(first);
    for (size_t i = 0; i < 3 * kSlabBytes / kForeignBytes || InMagazine() != 0; ++i) {
      own.push_back(Allocate(kForeignBytes));
    }
    misuse(other, own);
  }).join();
}

TEST(HeapDeathTest, ASecondFreeOfAKeptBlockIsReported) {
  EXPECT_EXIT(InAThreadThatKeeps([](char* other, const std::vector<char*>&) {
                Deallocate(other);
                if (InMagazine() != 1) _exit(1);
                Deallocate(other);
              }),
              testing::KilledBySignal(SIGABRT), "^quarry: double free of ");
}

TEST(HeapDeathTest, ASecondFreeThatWouldKeepABlockIsReported) {
  EXPECT_EXIT(InAThreadThatKeeps([](char* other, const std::vector<char*>& own) {
                // Not short of them: it is on its way home.
                for (size_t i = 0; i < 40; ++i) Deallocate(own[i]);
                Deallocate(other);
                if (InMagazine() != 40) _exit(1);
                while (InMagazine() != 0) static_cast<void>(Allocate(kForeignBytes));
                Deallocate(other);
              }),
              testing::KilledBySignal(SIGABRT), "^quarry: double free of ");
}

}  // namespace
}  // namespace quarry
