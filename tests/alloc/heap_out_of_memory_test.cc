// The heap when the operating system refuses memory: null, and everything else
// as it was.
//
// Each test runs in a process of its own, whose heap nobody has used before, so
// that the very first mappings are refused, too. There the heap's own checks
// stand in for GoogleTest's.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "alloc/heap.h"
#include "arena/limits.h"
#include "arena/page_source.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/size_classes.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/scripted_page_source.h"

namespace quarry {
namespace {

// The figures are exact only while no other thread runs.
const bool no_thread = (settings.maintenance = false, true);

// What `run` returned in a child of this process; -1 if it did not end well.
template <typename Run>
int InAChild(Run run) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) _exit(run());
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void CheckBalanced() {
  const HeapStatistics s = GatherStatistics();
  QUARRY_CHECK(s.mapped_bytes == s.live_bytes + s.cached_bytes +
                                     s.slab_free_bytes + s.arena_free_bytes +
                                     s.huge_cached_bytes + s.metadata_bytes);
}

// Calls that the source could have refused. Some the kernel refuses by itself.
size_t RefusableCalls(const ScriptedPageSource& source) {
  using Kind = ScriptedPageSource::Kind;
  return source.CountOf(Kind::kMap) + source.CountOf(Kind::kPurge) +
         source.CountOf(Kind::kGrow) + source.CountOf(Kind::kMove) +
         source.CountOf(Kind::kMoveOut);
}

struct Block {
  char* start;
  size_t bytes;
};

// A program that uses every room, and takes a null for what it is.
class Program {
 public:
  // The source refuses its n-th call. Nothing may fail before.
  Program(const ScriptedPageSource& source, size_t n)
      : source_(source), refused_call_(n) {}

  enum Nulls {
    kNever,      // Nothing is refused.
    kOnce,       // A second try succeeds where the first did not.
    kEachAgain,
  };

  void Run(Nulls nulls) {
    nulls_ = nulls;
    for (SizeClass c = kFirstClass; c < kClasses; c += 7) {
      Add(BlockBytes(c), [&] { return Allocate(BlockBytes(c)); });
    }
    Add(8, [] { return AllocateUnaligned8(8); });
    Add(100, [] { return AllocateAligned(100, 4096); });
    for (const size_t bytes : {100 * kKiB, 2 * kMiB, 5 * kMiB}) {
      Add(bytes, [&] { return Allocate(bytes); });
      Add(bytes, [&] { return AllocateZeroed(bytes); });
      Add(bytes, [&] { return AllocateAligned(bytes, kMiB); });
      Add(bytes, [&] { return AllocateAligned(bytes, 64 * kMiB); });
    }
    // From each room to the others, and to more of the same.
    for (const size_t bytes : {size_t{100}, 50 * kKiB, 2 * kMiB, 9 * kMiB,
                               33 * kMiB, 6 * kMiB, kMiB, size_t{10}}) {
      for (size_t i = 0; i < blocks_.size(); i += 9) Resize(i, bytes);
    }
    // Half of it, in an order that joins and splits.
    for (size_t i = 0; i < blocks_.size(); ++i) {
      std::swap(blocks_[i], blocks_.back());
      Free();
    }
    static_cast<void>(ReleaseMemory(0));
  }

  void FreeAll() {
    while (!blocks_.empty()) Free();
  }

 private:
  static uint64_t StampOf(const Block& block) { return block.bytes * 31; }

  void CheckIntact(const Block& block, size_t kept = ~size_t{0}) {
    QUARRY_CHECK(
        Content::IsIntact(block.start, block.bytes, StampOf(block), kept));
  }

  template <typename Call>
  void* Try(Call call) {
    void* result = call();
    if (result != nullptr) return result;
    QUARRY_CHECK(nulls_ != kNever);
    QUARRY_CHECK(RefusableCalls(source_) >= refused_call_);
    VerifyHeap();
    CheckBalanced();
    for (const Block& block : blocks_) CheckIntact(block);
    if (nulls_ == kEachAgain) return nullptr;
    result = call();
    QUARRY_CHECK(result != nullptr);
    return result;
  }

  template <typename Call>
  void Add(size_t bytes, Call call) {
    const Block block = {static_cast<char*>(Try(call)), bytes};
    if (block.start == nullptr) return;
    QUARRY_CHECK(UsableBytes(block.start) >= bytes);
    Content::Write(block.start, bytes, StampOf(block));
    blocks_.push_back(block);
  }

  void Resize(size_t index, size_t bytes) {
    const Block before = blocks_[index];
    char* const moved = static_cast<char*>(
        Try([&] { return Reallocate(before.start, bytes); }));
    if (moved == nullptr) return;
    QUARRY_CHECK(
        Content::IsIntact(moved, before.bytes, StampOf(before), bytes));
    // What a sized free goes by. A huge block may be larger than it must be.
    const size_t usable = UsableBytes(moved);
    const size_t medium = bytes > kSlabsOnlyMaxBytes ? MediumBytes(bytes) : SIZE_MAX;
    QUARRY_CHECK(usable >= std::min(GoodBytes(bytes), medium));
    QUARRY_CHECK(usable <= GoodBytes(bytes) * 9 / 8);
    blocks_[index] = {moved, bytes};
    Content::Write(moved, bytes, StampOf(blocks_[index]));
  }

  void Free() {
    CheckIntact(blocks_.back());
    Deallocate(blocks_.back().start);
    blocks_.pop_back();
  }

  const ScriptedPageSource& source_;
  const size_t refused_call_;
  Nulls nulls_ = kNever;
  std::vector<Block> blocks_;
};

enum Outcome { kNothingRefused = 0, kRefusedAndIntact = 1 };

// Runs the program while the source refuses its n-th call, with `all` those
// after it, too, and again when it refuses none.
int RunRefusing(size_t n, bool all) {
  ScriptedPageSource source;
  os_page_source.Substitute(&source);
  if (all) {
    source.RefuseFrom(n);
  } else {
    source.RefuseNth(n);
  }
  Program program(source, n);
  for (int round = 0; round < (kInstrumented ? 1 : 2); ++round) {
    program.Run(all ? Program::kEachAgain : Program::kOnce);
  }
  const bool refused = RefusableCalls(source) >= n;
  source.RefuseNothing();
  VerifyHeap();
  program.Run(Program::kNever);
  program.FreeAll();
  VerifyHeap();
  CheckBalanced();
  QUARRY_CHECK(GatherStatistics().live_bytes == 0);
  return refused ? kRefusedAndIntact : kNothingRefused;
}

void RefuseEveryN(bool all) {
  size_t n = 1;
  // A fork of an instrumented process is slow.
  for (;; n += kInstrumented ? 3 : 1) {
    const int outcome = InAChild([=] { return RunRefusing(n, all); });
    if (outcome == kNothingRefused) break;
    ASSERT_EQ(outcome, kRefusedAndIntact) << "n is " << n;
  }
  EXPECT_GT(n, 20u);
}

TEST(HeapOutOfMemory, RefusingTheNthMappingForEveryN) { RefuseEveryN(false); }

TEST(HeapOutOfMemory, RefusingAllFromTheNthOnForEveryN) { RefuseEveryN(true); }

// What is cut off a block needs a record, and at some point there is none. A
// block that kept its old size would not be what its sized free says.
TEST(HeapOutOfMemory, AShorterBlockHasItsNewSizeOrNull) {
  EXPECT_EQ(InAChild([] {
    ScriptedPageSource source;
    os_page_source.Substitute(&source);
    std::vector<Block> blocks;
    for (int i = 0; i < 20000; ++i) {
      blocks.push_back({Allocate(24 * PageBytes()), 24 * PageBytes()});
      *blocks.back().start = 1;
    }
    source.RefuseKind(ScriptedPageSource::Kind::kMap);
    size_t refused = 0;
    for (Block& block : blocks) {
      char* const shorter =
          static_cast<char*>(Reallocate(block.start, 18 * PageBytes()));
      if (shorter == nullptr) {
        ++refused;
      } else {
        block = {shorter, 18 * PageBytes()};
      }
      QUARRY_CHECK(*block.start == 1);
    }
    VerifyHeap();
    CheckBalanced();
    for (const Block& block : blocks) DeallocateSized(block.start, block.bytes);
    VerifyHeap();
    QUARRY_CHECK(GatherStatistics().live_bytes == 0);
    return refused > 0 ? kRefusedAndIntact : kNothingRefused;
  }), kRefusedAndIntact);
}

// It is cut in place where there is no room for another.
TEST(HeapOutOfMemory, ABlockOfWhichLittleIsLeftHasItsNewSize) {
  EXPECT_EQ(InAChild([] {
    char* const block = Allocate(kMiB);
    *block = 1;
    // All else that is free.
    std::vector<char*> others;
    others.reserve(1000000);
    ScriptedPageSource source;
    os_page_source.Substitute(&source);
    source.RefuseKind(ScriptedPageSource::Kind::kMap);
    for (size_t bytes = kMiB; bytes > 64 * kKiB; bytes -= PageBytes()) {
      while (char* const other = Allocate(bytes)) others.push_back(other);
    }
    QUARRY_CHECK(Reallocate(block, 100 * kKiB) == block);
    QUARRY_CHECK(*block == 1 && UsableBytes(block) < 120 * kKiB);
    DeallocateSized(block, 100 * kKiB);
    VerifyHeap();
    return 0;
  }), 0);
}

// --- The limit of the process. ---

size_t AddressSpaceBytes() {
  // The first number of statm, in pages.
  unsigned long pages = 0;
  FILE* const file = fopen("/proc/self/statm", "r");
  QUARRY_CHECK(file != nullptr && fscanf(file, "%lu", &pages) == 1);
  fclose(file);
  return pages * PageBytes();
}

void LimitAddressSpace(size_t bytes) {
  const rlimit limit = {bytes, bytes};
  QUARRY_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

// Fills what there is, which is more than `least_bytes`, with blocks of each of
// several sizes, and empties it again.
void FillAndEmpty(size_t least_bytes) {
  for (const size_t bytes : {100, 1000, 12000, 100000}) {
    // Linked through their first words: a vector would need memory itself.
    char* newest = nullptr;
    size_t count = 0;
    while (char* const block = Allocate(bytes)) {
      memcpy(block, &newest, sizeof(newest));
      newest = block;
      ++count;
    }
    QUARRY_CHECK(count * bytes > least_bytes);
    QUARRY_CHECK(Allocate(bytes) == nullptr);
    QUARRY_CHECK(AllocateZeroed(200 * kMiB) == nullptr);
    QUARRY_CHECK(AllocateAligned(200 * kMiB, 512 * kMiB) == nullptr);
    QUARRY_CHECK(Reallocate(newest, 200 * kMiB) == nullptr);
    VerifyHeap();
    CheckBalanced();
    for (; count > 0; --count) {
      char* const block = newest;
      memcpy(&newest, block, sizeof(newest));
      Deallocate(block);
    }
    QUARRY_CHECK(newest == nullptr);
    static_cast<void>(ReleaseMemory(0));
    VerifyHeap();
    // And all of it serves another size.
    char* const large = Allocate(64 * kMiB);
    QUARRY_CHECK(large != nullptr);
    Deallocate(large);
  }
}

TEST(HeapOutOfMemory, AnAddressSpaceThatIsFull) {
  if (kInstrumented) GTEST_SKIP() << "the sanitizer needs more addresses";
  EXPECT_EQ(InAChild([] {
    LimitAddressSpace(AddressSpaceBytes() + 96 * kMiB);
    FillAndEmpty(64 * kMiB);
    return 0;
  }), 0);
}

TEST(HeapOutOfMemory, AnAddressSpaceOf256MiB) {
  if (kInstrumented) GTEST_SKIP() << "the sanitizer needs more addresses";
  EXPECT_EQ(InAChild([] {
    LimitAddressSpace(256 * kMiB);
    FillAndEmpty(160 * kMiB);
    return 0;
  }), 0);
}

TEST(HeapOutOfMemory, AHardLimitOf256MiB) {
  EXPECT_EQ(InAChild([] {
    SetMemoryLimits(0, 256 * kMiB);
    FillAndEmpty(200 * kMiB);
    QUARRY_CHECK(GatherStatistics().peak_mapped_bytes <= 256 * kMiB);
    return 0;
  }), 0);
}

// What is kept for reuse, and the old place of what grows, do not stand in the
// way.
TEST(HeapOutOfMemory, GrowthNeedsRoomOnlyForWhatItAdds) {
  EXPECT_EQ(InAChild([] {
    SetMemoryLimits(0, 100 * kMiB);
    Deallocate(Allocate(20 * kMiB));
    Deallocate(Allocate(16 * kMiB));
    char* block = Allocate(50 * kMiB);
    QUARRY_CHECK(block != nullptr);
    block[0] = 1;
    block = static_cast<char*>(Reallocate(block, 90 * kMiB));
    QUARRY_CHECK(block != nullptr && block[0] == 1);
    QUARRY_CHECK(Reallocate(block, 110 * kMiB) == nullptr);
    Deallocate(block);
    return 0;
  }), 0);
}

TEST(HeapOutOfMemory, OneGibibyteOfAddressesIsEnough) {
  if (kInstrumented) GTEST_SKIP() << "the sanitizer needs more addresses";
  EXPECT_EQ(InAChild([] {
    LimitAddressSpace(1024 * kMiB);
    std::vector<char*> blocks;
    for (size_t i = 0; i < 700; ++i) {
      blocks.push_back(Allocate(kMiB));
      QUARRY_CHECK(blocks.back() != nullptr);
    }
    char* const aligned =
        static_cast<char*>(AllocateAligned(100, 64 * kMiB));
    QUARRY_CHECK(aligned != nullptr);
    Deallocate(aligned);
    for (char* block : blocks) Deallocate(block);
    return 0;
  }), 0);
}

}  // namespace
}  // namespace quarry
