// The heap under threads that free what others allocated, that exit with blocks
// alive, or that have no cache.
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "alloc/heap.h"
#include "arena/page_source.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/remote_batch.h"
#include "tcache/size_classes.h"
#include "tcache/slab.h"
#include "tcache/thread_life.h"
#include "tests/alloc/heap_support.h"
#include "tests/arena/in_child.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// The figures are exact only while the threads of a test are the only ones.
const bool no_thread = (settings.maintenance = false, true);

// What an arena that has its first segment may add before it counts as growth.
constexpr size_t kNextSegments = 24 * kMiB;

struct Block {
  char* start;
  size_t bytes;
  uint64_t stamp;
};

using Batch = std::vector<Block>;

// A few batches on their way from one thread to another.
class Channel {
 public:
  void Send(Batch batch) {
    std::unique_lock<std::mutex> hold(mutex_);
    changed_.wait(hold, [this] { return batches_.size() < kMostBatches; });
    batches_.push_back(std::move(batch));
    changed_.notify_all();
  }

  Batch Receive() {
    std::unique_lock<std::mutex> hold(mutex_);
    changed_.wait(hold, [this] { return !batches_.empty(); });
    Batch batch = std::move(batches_.front());
    batches_.pop_front();
    changed_.notify_all();
    return batch;
  }

 private:
  static constexpr size_t kMostBatches = 16;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> batches_;
};

Batch MakeBatch(std::mt19937_64& random, size_t blocks) {
  Batch batch;
  for (size_t i = 0; i < blocks; ++i) {
    // One in 500 is of another room than the slabs.
    const size_t bytes =
        random() % 500 == 0 ? random() % kMiB : random() % 2000;
    batch.push_back({Allocate(bytes), bytes, random()});
    Content::Write(batch[i].start, bytes, batch[i].stamp);
  }
  return batch;
}

void CheckAndFree(const Batch& batch) {
  for (const Block& block : batch) {
    ASSERT_TRUE(Content::IsIntact(block.start, block.bytes, block.stamp));
    if (block.stamp % 2 == 0) {
      Deallocate(block.start);
    } else {
      DeallocateSized(block.start, block.bytes);
    }
  }
}

// The consumer never allocates, so that all it frees has to find its way back.
TEST(HeapThreads, AHandOverOfBlocksNeedsNoMoreAndMoreMemory) {
  FlushThread();
  const size_t live_before = GatherStatistics().live_bytes;
  const uint64_t seed = TestSeed();
  const size_t cycles = Steps(100000);
  Channel channel;
  size_t mapped_early = 0;
  size_t mapped_at_end = 0;
  std::thread producer([&] {
    std::mt19937_64 random(seed);
    for (size_t cycle = 0; cycle < cycles; ++cycle) {
      channel.Send(MakeBatch(random, 8));
      if (cycle == cycles / 10) mapped_early = GatherStatistics().mapped_bytes;
    }
    mapped_at_end = GatherStatistics().mapped_bytes;
  });
  std::thread consumer([&] {
    for (size_t cycle = 0; cycle < cycles; ++cycle) {
      CheckAndFree(channel.Receive());
    }
  });
  producer.join();
  consumer.join();
  // Some 150 blocks of 1 KB were on their way at any time, of 800,000.
  EXPECT_LE(mapped_at_end, mapped_early + kNextSegments);
  VerifyHeap();
  EXPECT_EQ(GatherStatistics().live_bytes, live_before);
  // A parked cache may have blocks of another's slabs.
  ReleaseMemory(0);
  EXPECT_EQ(GatherStatistics().slabs_orphaned, 0u);
}

TEST(HeapThreads, BlocksInBothDirections) {
  FlushThread();
  const size_t live_before = GatherStatistics().live_bytes;
  std::mt19937_64 seeds(TestSeed());
  const size_t cycles = Steps(20000);
  Channel there, back;
  const auto work = [&](uint64_t seed, Channel& out, Channel& in) {
    std::mt19937_64 random(seed);
    for (size_t cycle = 0; cycle < cycles; ++cycle) {
      out.Send(MakeBatch(random, 8));
      CheckAndFree(in.Receive());
    }
  };
  std::thread a(work, seeds(), std::ref(there), std::ref(back));
  std::thread b(work, seeds(), std::ref(back), std::ref(there));
  a.join();
  b.join();
  VerifyHeap();
  EXPECT_EQ(GatherStatistics().live_bytes, live_before);
}

// --- Exit. ---

TEST(HeapThreads, BlocksOutliveTheThreadThatAllocatedThem) {
  const size_t parked_caches = settings.parked_caches.exchange(0);
  FlushThread();
  const size_t live_before = GatherStatistics().live_bytes;
  std::mt19937_64 seeds(TestSeed());
  std::vector<Batch> batches(20);
  for (Batch& batch : batches) {
    std::thread([&, seed = seeds()] {
      std::mt19937_64 random(seed);
      batch = MakeBatch(random, 500);
    }).join();
  }
  VerifyHeap();
  EXPECT_GT(GatherStatistics().slabs_orphaned, 0u);
  ExpectBalanced(GatherStatistics());
  for (const Batch& batch : batches) CheckAndFree(batch);
  FlushThread();
  VerifyHeap();
  const HeapStatistics after = GatherStatistics();
  EXPECT_EQ(after.live_bytes, live_before);
  EXPECT_EQ(after.slabs_orphaned, 0u);
  settings.parked_caches = parked_caches;
}

TEST(HeapThreads, ThreadsThatComeAndGoNeedNoMoreAndMoreMemory) {
  std::mt19937_64 seeds(TestSeed());
  const size_t threads = Steps(2000);
  Batch last;
  size_t mapped_early = 0;
  for (size_t i = 0; i < threads; ++i) {
    std::thread([&, seed = seeds()] {
      std::mt19937_64 random(seed);
      CheckAndFree(last);
      last = MakeBatch(random, 100);
    }).join();
    if (i == threads / 10) mapped_early = GatherStatistics().mapped_bytes;
  }
  EXPECT_LE(GatherStatistics().mapped_bytes, mapped_early + kNextSegments);
  CheckAndFree(last);
  VerifyHeap();
}

// --- Without a cache. ---

// Not for a few frees; and the one that it gets for many goes with it.
TEST(HeapThreads, AThreadThatOnlyFreesGetsACacheLate) {
  std::mt19937_64 random(TestSeed());
  Deallocate(Allocate(0));  // This thread has a cache.
  const size_t live_before = GatherStatistics().live_bytes;
  const size_t threads_before = GatherStatistics().threads;
  for (int round = 0; round < 20; ++round) {
    const Batch batch = MakeBatch(random, 1000);
    char* few[20];
    for (char*& p : few) p = Allocate(100);
    std::thread([&] {
      for (char* p : few) Deallocate(p);
      Deallocate(nullptr);
      EXPECT_EQ(GatherStatistics().threads, threads_before);
      CheckAndFree(batch);
      EXPECT_EQ(GatherStatistics().threads, threads_before + 1);
    }).join();
    EXPECT_EQ(GatherStatistics().threads, threads_before);
  }
  VerifyHeap();
  FlushThread();
  EXPECT_EQ(GatherStatistics().live_bytes, live_before);
  VerifyHeap();
}

// What a thread frees of others it holds, and marks when it is so many bytes.
TEST(HeapThreads, WhatAThreadHoldsOfOthersIsBounded) {
  // The maintenance thread would take in what is marked.
  settings.decay_ms = 1000000;
  // Of one slab each, and each slab one word, so that none is displaced.
  std::vector<char*> blocks;
  std::vector<char*> whole;
  size_t whole_bytes = 0;
  for (const size_t bytes : {1024, 2048}) {
    const size_t most = SlabBlocks(ClassOf(bytes));
    ASSERT_LE(most, 64u);
    std::map<Slab*, std::vector<char*>> by_slab;
    std::vector<char*>* of_slab;
    do {
      char* const p = Allocate(bytes);
      of_slab = &by_slab[Slab::Of(p)];
      of_slab->push_back(p);
    } while (of_slab->size() < most);
    whole.insert(whole.end(), of_slab->begin(), of_slab->end());
    whole_bytes += most * bytes;
    of_slab->clear();
    for (const auto& [slab, others] : by_slab) {
      blocks.insert(blocks.end(), others.begin(), others.end());
    }
  }
  ASSERT_EQ(whole_bytes, RemoteBatch::kMostBytes);
  const auto is_marked = [](char* p) {
    const Slab* const slab = Slab::Of(p);
    return slab->remote.IsMarked(slab->IndexOf(p));
  };
  // Nor one that was parked: with slabs of new pages, it would keep some of them.
  ReleaseMemory(0);
  std::thread([&] {
    Deallocate(Allocate(16));  // Now it has a cache.
    for (char* p : whole) {
      EXPECT_FALSE(is_marked(whole.front()));
      Deallocate(p);
    }
    for (char* p : whole) EXPECT_TRUE(is_marked(p));
  }).join();
  settings.decay_ms = Settings().decay_ms.load();
  for (char* p : blocks) Deallocate(p);
  FlushThread();
  VerifyHeap();
}

TEST(HeapThreads, AThreadThatGaveItsCacheUpStillAllocatesAndFrees) {
  FlushThread();
  const size_t live_before = GatherStatistics().live_bytes;
  std::mt19937_64 seeds(TestSeed());
  std::vector<Batch> left(4);
  std::vector<std::thread> threads;
  for (Batch& batch : left) {
    threads.emplace_back([&, seed = seeds()] {
      std::mt19937_64 random(seed);
      const Batch before = MakeBatch(random, 300);
      EndThread();
      const Batch after = MakeBatch(random, 300);
      CheckAndFree(before);
      batch = MakeBatch(random, 300);
      CheckAndFree(after);
      char* block = static_cast<char*>(AllocateZeroed(1000));
      EXPECT_TRUE(AllBytesAre(block, 1000, 0));
      block = static_cast<char*>(Reallocate(block, 5 * kMiB));
      Deallocate(Reallocate(block, 10));
      FlushThread();
      EndThread();
    });
  }
  for (std::thread& thread : threads) thread.join();
  VerifyHeap();
  ExpectBalanced(GatherStatistics());
  for (const Batch& batch : left) CheckAndFree(batch);
  // What was freed is back in the shared cache once a thread allocates there.
  FlushThread();
  std::thread([] {
    Deallocate(Allocate(0));
    EndThread();
    Deallocate(Allocate(1000));
  }).join();
  FlushThread();
  VerifyHeap();
  EXPECT_LE(GatherStatistics().live_bytes, live_before + GoodBytes(1000));
}

pthread_key_t late_key;

// How often the C library calls a destructor that sets its value again. In the
// last round ThreadSanitizer gives up what it needs for instrumented code.
constexpr int kRounds = PTHREAD_DESTRUCTOR_ITERATIONS - (kInstrumented ? 1 : 0);

// Comes back in every round, so that it runs before and after the heap's own
// destructor.
void AllocateLate(void* value) {
  Deallocate(value);
  char* const block = Allocate(100);
  Content::Write(block, 100, 1);
  Deallocate(Reallocate(Allocate(10), 40000));
  EXPECT_TRUE(Content::IsIntact(block, 100, 1));
  static thread_local int rounds = 0;
  if (++rounds < kRounds) {
    pthread_setspecific(late_key, block);
  } else {
    Deallocate(block);
  }
}

TEST(HeapThreads, DestructorsOfOtherKeysAllocateAndFree) {
  ASSERT_EQ(pthread_key_create(&late_key, AllocateLate), 0);
  for (size_t i = 0; i < Steps(500); ++i) {
    std::thread([] { pthread_setspecific(late_key, Allocate(50)); }).join();
  }
  VerifyHeap();
  ExpectBalanced(GatherStatistics());
  pthread_key_delete(late_key);
}

// --- Figures and checks beside other threads. ---

TEST(HeapThreads, StatisticsAndChecksRunBesideEverything) {
  std::mt19937_64 seeds(TestSeed());
  std::atomic<int> running{3};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, seed = seeds()] {
      std::mt19937_64 random(seed);
      for (size_t step = 0; step < Steps(300); ++step) {
        CheckAndFree(MakeBatch(random, 100));
        if (step % 10 == 0) FlushThread();
        if (step % 50 == 0) ReleaseMemory(0);
      }
      running.fetch_sub(1);
    });
  }
  while (running.load() > 0) {
    VerifyHeap();
    const HeapStatistics s = GatherStatistics();
    EXPECT_GE(s.peak_mapped_bytes, s.metadata_bytes);
  }
  for (std::thread& thread : threads) thread.join();
  VerifyHeap();
  ExpectBalanced(GatherStatistics());
}

// Whatever the threads that it has not were in the midst of in their magazines.
TEST(HeapThreads, ChecksRunInAForksChild) {
  std::atomic<bool> is_amid{false}, forked{false};
  std::thread other([&] {
    char* const block = Allocate(100);
    Deallocate(block);
    Magazine* magazine;
    QUARRY_CHECK(ThreadCache::FindMagazine(block, &magazine));
    // As if the free had linked the block, and not yet counted it.
    ++magazine->room;
    is_amid = true;
    is_amid.notify_one();
    forked.wait(false);
    --magazine->room;
  });
  is_amid.wait(false);
  EXPECT_EQ(InChild([] {
              VerifyHeap();
              // Closes what they had.
              ReleaseMemory(0);
              VerifyHeap();
            }),
            0);
  forked = true;
  forked.notify_one();
  other.join();
  VerifyHeap();
}

// While the thread that they came from neither runs nor ends, and where they came from
// no thread's cache, of which nobody may ask for more.
TEST(HeapThreads, WhatOthersFreedIsNotLive) {
  FlushThread();
  const size_t live_before = GatherStatistics().live_bytes;
  std::vector<char*> blocks;
  const auto allocate = [&] {
    for (int i = 0; i < 100; ++i) blocks.push_back(Allocate(100));
  };
  std::thread([&] {
    EndThread();
    allocate();
  }).join();
  std::atomic<bool> allocated{false}, looked{false};
  std::thread waiting([&] {
    allocate();
    FlushThread();
    allocated = true;
    allocated.notify_one();
    looked.wait(false);
  });
  allocated.wait(false);
  EXPECT_EQ(GatherStatistics().live_bytes, live_before + 200 * GoodBytes(100));
  for (char* block : blocks) Deallocate(block);
  EXPECT_EQ(GatherStatistics().live_bytes, live_before);
  looked = true;
  looked.notify_one();
  waiting.join();
  VerifyHeap();
}

// --- Blocks of threads that wait. ---

// How many of the blocks of `bytes` that a new thread allocates are ones that it has just
// freed and that this thread had allocated, of 200; it has made new pages resident for the
// size before.
size_t TakenFromAThreadThatWaits(size_t bytes) {
  constexpr size_t kBlocks = 200;
  ReleaseMemory(0);
  std::vector<char*> others;
  for (size_t i = 0; i < kBlocks + 1; ++i) others.push_back(Allocate(bytes));
  size_t taken = 0;
  std::thread([&] {
    Deallocate(others.back());
    others.pop_back();
    std::vector<char*> own;
    for (size_t i = 0; i < 2 * kSlabBytes / bytes; ++i) own.push_back(Allocate(bytes));
    std::set<char*> freed;
    for (char* block : others) {
      Deallocate(block);
      freed.insert(block);
      own.push_back(Allocate(bytes));
      taken += freed.erase(own.back());
    }
    VerifyHeap();
    for (char* block : own) Deallocate(block);
  }).join();
  VerifyHeap();
  return taken;
}

TEST(HeapThreads, WhoNeedsNewPagesUsesBlocksOfAThreadThatWaits) {
  const size_t live_before = GatherStatistics().live_bytes;
  EXPECT_GT(TakenFromAThreadThatWaits(512), 100u);
  EXPECT_GT(TakenFromAThreadThatWaits(2000), 100u);
  // Beside it on the line may be what that thread uses.
  EXPECT_EQ(TakenFromAThreadThatWaits(64), 0u);
  EXPECT_EQ(GatherStatistics().live_bytes, live_before);
}

// A page that the child writes to is copied, and what is kept is written to.
TEST(HeapThreads, AForksChildKeepsNoneOfItsParentsBlocks) {
  constexpr size_t kBytes = 512;
  constexpr uint64_t kContent = 0x0123456789abcdef;
  std::vector<uint64_t*> blocks;
  // Of a slab that has free blocks the child may allocate.
  ReleaseMemory(0);
  for (size_t i = 0; i < 12000; ++i) {
    blocks.push_back(reinterpret_cast<uint64_t*>(Allocate(kBytes)));
    *blocks.back() = kContent;
  }
  EXPECT_EQ(InChild([&] {
              Deallocate(blocks.back());
              std::vector<void*> own;
              for (size_t i = 0; i < 300; ++i) own.push_back(Allocate(kBytes));
              for (size_t i = 0; i < 600; ++i) {
                Deallocate(blocks[i]);
                QUARRY_CHECK(*blocks[i] == kContent);
                own.push_back(Allocate(kBytes));
              }
              for (void* p : own) Deallocate(p);
              VerifyHeap();
            }),
            0);
  for (uint64_t* p : blocks) Deallocate(p);
}

// Each would come to have as many pages as all blocks need.
TEST(HeapThreads, ThreadsThatReplaceEachOthersBlocksInTurnShareThePages) {
  constexpr size_t kThreads = 8;
  const size_t blocks = 6000;
  const uint64_t seed = TestSeed();
  ReleaseMemory(0);
  const HeapStatistics before = GatherStatistics();
  const auto slab_bytes = [](const HeapStatistics& s) {
    return s.live_small_bytes + s.slab_free_bytes + s.cached_bytes;
  };
  std::vector<char*> table(blocks);
  size_t live_bytes = 0;
  std::atomic<size_t> turn{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      for (size_t round = 0; round < 2; ++round) {
        for (size_t now; (now = turn.load()) != round * kThreads + t;) turn.wait(now);
        // The first fills it.
        for (size_t i = 0; i < blocks; ++i) {
          char*& block = table[t + round == 0 ? i : random() % blocks];
          char* const next = Allocate(200 + random() % 1000);
          *next = 1;
          Deallocate(std::exchange(block, next));
        }
        if (t + round == 0) live_bytes = GatherStatistics().live_small_bytes;
        turn.fetch_add(1);
        turn.notify_all();
      }
      // All wait for the end.
      for (size_t now; (now = turn.load()) <= 2 * kThreads;) turn.wait(now);
    });
  }
  for (size_t now; (now = turn.load()) != 2 * kThreads;) turn.wait(now);
  VerifyHeap();
  const size_t bytes = slab_bytes(GatherStatistics()) - slab_bytes(before);
  // Of eight threads' worth, 4.4 times; 6.4 if none took what others had allocated.
  EXPECT_LT(2 * bytes, 11 * (live_bytes - before.live_small_bytes));
  for (char* block : table) Deallocate(block);
  turn.fetch_add(1);
  turn.notify_all();
  for (std::thread& thread : threads) thread.join();
  VerifyHeap();
  EXPECT_EQ(GatherStatistics().live_bytes, before.live_bytes);
}

// --- Giving back. ---

size_t ResidentBytes() {
  // The second number of statm, in pages.
  unsigned long total = 0, resident = 0;
  FILE* const file = fopen("/proc/self/statm", "r");
  EXPECT_EQ(fscanf(file, "%lu %lu", &total, &resident), 2);
  fclose(file);
  return resident * PageBytes();
}

TEST(HeapThreads, ReleasedMemoryIsNotResident) {
  // What went before would not be counted.
  settings.decay_ms = 1000000;
  settings.trim_threshold_bytes = 1024 * kMiB;
  for (const size_t bytes : {size_t{100}, size_t{3000}, 100 * kKiB, 5 * kMiB}) {
    SCOPED_TRACE(bytes);
    const size_t count = 64 * kMiB / bytes;
    std::vector<char*> blocks;
    blocks.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      blocks.push_back(Allocate(bytes));
      memset(blocks[i], 1, bytes);
    }
    const size_t resident = ResidentBytes();
    const size_t mapped = GatherStatistics().mapped_bytes;
    // Half of them elsewhere: a release takes those in, too.
    std::thread([&] {
      for (size_t i = 0; i < count; i += 2) Deallocate(blocks[i]);
    }).join();
    for (size_t i = 1; i < count; i += 2) Deallocate(blocks[i]);
    const size_t released = ReleaseMemory(0);
    EXPECT_GE(released, 56 * kMiB - 48 * kMiB * (bytes > 4 * kMiB));
    EXPECT_LE(ResidentBytes() + 48 * kMiB, resident);
    EXPECT_LE(GatherStatistics().mapped_bytes + 48 * kMiB, mapped);
    EXPECT_EQ(GatherStatistics().arena_dirty_bytes, 0u);
    // What has gone is not told again, though there are addresses left that may go.
    EXPECT_LE(ReleaseMemory(0), kMiB);
  }
  settings.decay_ms = Settings().decay_ms.load();
  settings.trim_threshold_bytes = Settings().trim_threshold_bytes.load();
}

TEST(HeapThreads, APadStaysMapped) {
  std::vector<char*> blocks;
  for (int i = 0; i < 640; ++i) {
    blocks.push_back(Allocate(100 * kKiB));
    memset(blocks.back(), 1, 100 * kKiB);
  }
  for (char* block : blocks) Deallocate(block);
  ReleaseMemory(16 * kMiB);
  EXPECT_GE(GatherStatistics().arena_free_bytes, 16 * kMiB);
  ReleaseMemory(0);
  EXPECT_LT(GatherStatistics().arena_free_bytes, 16 * kMiB);
}

}  // namespace
}  // namespace quarry
