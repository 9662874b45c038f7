// The heap against a model of what malloc promises: which intervals are live,
// and what is in them.
#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "alloc/heap.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// The figures are exact only while no other thread runs.
const bool no_thread = (settings.maintenance = false, true);

using Random = std::mt19937_64;

// As many small sizes as large ones, and a few in every room.
size_t RandomBytes(Random& random) {
  const size_t doublings = random() % 100;
  if (doublings < 60) return random() % 1024;
  if (doublings < 90) return random() % (64 * kKiB);
  if (doublings < 99) return random() % (2 * kMiB);
  return random() % (12 * kMiB);
}

struct Block {
  char* start;
  size_t bytes;  // As asked for.
  uint64_t stamp;
  size_t alignment;
};

class Model {
 public:
  explicit Model(uint64_t seed) : random_(seed) {}

  void Step() {
    const size_t dice = random_() % 100;
    if (live_bytes_ > kMostLiveBytes) return Free();
    if (!blocks_.empty() && dice < 45) return Free();
    if (!blocks_.empty() && dice < 60) return Resize();
    Add(dice);
  }

  void FreeAll() {
    while (!blocks_.empty()) Free();
  }

 private:
  static constexpr size_t kMostLiveBytes = 128 * kMiB;

  void Add(size_t dice) {
    const size_t bytes = RandomBytes(random_);
    size_t alignment = 16;
    char* start;
    if (dice < 75) {
      start = Allocate(bytes);
    } else if (dice < 85) {
      start = static_cast<char*>(AllocateZeroed(bytes));
      ASSERT_TRUE(AllBytesAre(start, bytes, 0));
    } else if (dice < 92) {
      alignment = size_t{1} << (random_() % 23);
      start = static_cast<char*>(AllocateAligned(bytes, alignment));
    } else {
      alignment = bytes <= 8 ? 8 : 16;
      start = static_cast<char*>(AllocateUnaligned8(bytes));
    }
    Enter({start, bytes, random_(), alignment});
  }

  void Resize() {
    const Block block = Take();
    const size_t bytes =
        1 + (random_() % 2 == 0 ? RandomBytes(random_)
                                : random_() % (2 * block.bytes + 1));
    char* const moved = static_cast<char*>(Reallocate(block.start, bytes));
    ASSERT_TRUE(Content::IsIntact(moved, block.bytes, block.stamp, bytes));
    Enter({moved, bytes, random_(), 16});
  }

  void Free() {
    const Block block = Take();
    const size_t usable = UsableBytes(block.start);
    // Any size from what was asked for to what was given.
    const size_t bytes = block.bytes + random_() % (usable - block.bytes + 1);
    if (random_() % 2 == 0) {
      Deallocate(block.start);
    } else if (block.alignment <= 16) {
      DeallocateSized(block.start, bytes);
    } else {
      DeallocateAlignedSized(block.start, bytes, block.alignment);
    }
  }

  // Enters a block that the heap has given out, and fills it.
  void Enter(const Block& block) {
    ASSERT_NE(block.start, nullptr);
    ASSERT_TRUE(IsAligned(block.start, block.alignment));
    const size_t usable = UsableBytes(block.start);
    ASSERT_GE(usable, std::max<size_t>(block.bytes, 1));
    char* const end = block.start + usable;
    const auto after = ends_.lower_bound(block.start);
    if (after != ends_.end()) {
      ASSERT_LE(end, after->first);
    }
    if (after != ends_.begin()) {
      ASSERT_LE(std::prev(after)->second, block.start);
    }
    ends_.emplace_hint(after, block.start, end);
    blocks_.push_back(block);
    live_bytes_ += block.bytes;
    Content::Write(block.start, block.bytes, block.stamp);
  }

  // Forgets one of the blocks, after a look at its content.
  Block Take() {
    std::swap(blocks_[random_() % blocks_.size()], blocks_.back());
    const Block block = blocks_.back();
    blocks_.pop_back();
    EXPECT_TRUE(Content::IsIntact(block.start, block.bytes, block.stamp));
    const auto interval = ends_.find(block.start);
    EXPECT_EQ(interval->second, block.start + UsableBytes(block.start));
    ends_.erase(interval);
    live_bytes_ -= block.bytes;
    return block;
  }

  Random random_;
  std::vector<Block> blocks_;
  std::map<char*, char*> ends_;  // From start to end of each live block.
  size_t live_bytes_ = 0;
};

TEST(HeapModel, RandomCallsOnOneThread) {
  const size_t live_before = GatherStatistics().live_bytes;
  Model model(TestSeed());
  const size_t steps = Steps(200000);
  for (size_t step = 0; step < steps; ++step) {
    model.Step();
    if (testing::Test::HasFailure()) FAIL() << "at step " << step;
    if (step % 2000 == 0) VerifyHeap();
    if (step % 20000 == 1) ReleaseMemory(step % 3 * kMiB);
  }
  VerifyHeap();
  model.FreeAll();
  VerifyHeap();
  EXPECT_EQ(GatherStatistics().live_bytes, live_before);
}

// --- Several threads. ---

// Where threads leave blocks for each other.
struct Slot {
  std::mutex mutex;
  Block block = {};
};

class Exchange {
 public:
  explicit Exchange(size_t slots) : slots_(slots) {}

  // One thread's part: takes what lies in a slot, checks it, leaves something
  // else there, and frees or resizes what it took.
  void Work(uint64_t seed, size_t steps) {
    Random random(seed);
    for (size_t step = 0; step < steps; ++step) {
      size_t bytes = RandomBytes(random);
      if (bytes > 4 * kMiB) bytes /= 8;
      Block block = {Allocate(bytes), bytes, random(), 16};
      Content::Write(block.start, bytes, block.stamp);
      Swap(slots_[random() % slots_.size()], block);
      if (block.start == nullptr) continue;
      ASSERT_TRUE(Content::IsIntact(block.start, block.bytes, block.stamp));
      if (random() % 4 == 0) {
        bytes = 1 + random() % (2 * block.bytes + 1);
        block.start = static_cast<char*>(Reallocate(block.start, bytes));
        ASSERT_TRUE(
            Content::IsIntact(block.start, block.bytes, block.stamp, bytes));
        block.bytes = bytes;
      }
      if (random() % 2 == 0) {
        Deallocate(block.start);
      } else {
        DeallocateSized(block.start, block.bytes);
      }
      if (step % 5000 == 4999) VerifyHeap();
    }
  }

  void Empty() {
    for (Slot& slot : slots_) {
      const Block block = slot.block;
      if (block.start == nullptr) continue;
      ASSERT_TRUE(Content::IsIntact(block.start, block.bytes, block.stamp));
      Deallocate(block.start);
    }
  }

 private:
  static void Swap(Slot& slot, Block& block) {
    std::lock_guard<std::mutex> hold(slot.mutex);
    std::swap(slot.block, block);
  }

  std::vector<Slot> slots_;
};

TEST(HeapModel, ThreadsThatExchangeBlocks) {
  FlushThread();
  const size_t live_before = GatherStatistics().live_bytes;
  Random seeds(TestSeed());
  Exchange exchange(300);
  // Threads end and others begin, which adopt what was left.
  for (int round = 0; round < 3; ++round) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back(
          [&, seed = seeds()] { exchange.Work(seed, Steps(20000)); });
    }
    for (std::thread& thread : threads) thread.join();
    VerifyHeap();
    ExpectBalanced(GatherStatistics());
  }
  exchange.Empty();
  // With the caches of ended threads, whose magazines may have blocks of others.
  ReleaseMemory(0);
  VerifyHeap();
  const HeapStatistics after = GatherStatistics();
  ExpectBalanced(after);
  EXPECT_EQ(after.live_bytes, live_before);
  EXPECT_EQ(after.slabs_orphaned, 0u);
}

}  // namespace
}  // namespace quarry
