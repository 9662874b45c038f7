#include "tcache/thread_life.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/process_fence.h"
#include "tcache/slab_token.h"
#include "tests/arena/in_child.h"
#include "tests/arena/test_seed.h"
#include "tests/tcache/blocks.h"
#include "tests/tcache/mark_freed.h"
#include "tests/tcache/several_arenas.h"

namespace quarry {
namespace {

// More than one, and fewer than there are threads.
const bool two_arenas = (settings.arenas_max = 2, true);

constexpr size_t kBytes = 112;

size_t MappedBytes() { return OsPages().statistics().mapped_bytes; }

// A key of which destructors run before those of Quarry's key, which is made
// with the first allocation, and one after.
pthread_key_t early_key;
pthread_key_t late_key;
void UseHeapInDestructor(void* rounds_left);
// Of a library that registered its fork handlers before Quarry did, so that they
// run while Quarry has taken its locks.
void UseHeapInForkHandler();
const bool keys_made = [] {
  pthread_atfork(UseHeapInForkHandler, UseHeapInForkHandler,
                 UseHeapInForkHandler);
  pthread_key_create(&early_key, UseHeapInDestructor);
  Free(Allocate(16));
  pthread_key_create(&late_key, UseHeapInDestructor);
  return true;
}();

// Whether the slab of `p`, which is this thread's, is.
bool IsInherited(void* p) { return thread_state.cache->IsInherited(Slab::Of(p)); }

class ThreadLifeTest : public testing::Test {
 protected:
  ~ThreadLifeTest() override {
    VerifyAll();
    ThreadCache::FlushThread();
    // What threads without a cache freed, and the one empty slab of each class.
    if (ThreadCache* const stray = StrayCache()) {
      OnAnotherThread([&] {
        thread_state.cache = stray;
        ThreadCache::FlushThread();
        thread_state.cache = &no_cache;
      });
    }
    EXPECT_EQ(CountOrphans(), 0u);
    EXPECT_EQ(SlabBytesInUse(), 0u) << "a slab is lost";
  }

  const OnOneNode on_one_node_;
};

TEST_F(ThreadLifeTest, AThreadGetsACacheWithItsFirstAllocation) {
  const size_t open = OpenCaches();
  Worker worker;
  worker.Do([&] {
    EXPECT_EQ(thread_state.cache, &no_cache);
    EXPECT_EQ(thread_state.tag, 0u);
    void* const p = Allocate(kBytes);
    EXPECT_NE(thread_state.cache, &no_cache);
    EXPECT_EQ(thread_state.tag, thread_state.cache->tag());
    EXPECT_EQ(OwnerOf(p), thread_state.cache);
    EXPECT_EQ(CurrentCache(), thread_state.cache);
    EXPECT_EQ(OpenCaches(), open + 1);
    Free(p);
  });
  worker.End();
  EXPECT_EQ(OpenCaches(), open);
}

TEST_F(ThreadLifeTest, ACacheServesOneThreadAfterAnother) {
  ThreadCache* first = nullptr;
  for (int i = 0; i < 10; ++i) {
    OnAnotherThread([&] {
      Free(Allocate(kBytes));
      if (first == nullptr) first = thread_state.cache;
      EXPECT_EQ(thread_state.cache, first);
      for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
        if (c != ClassOf(kBytes)) {
          EXPECT_EQ(first->MagazineBlocks(c), 0u);
        }
      }
    });
  }
}

TEST_F(ThreadLifeTest, EndThreadIsHarmlessTwiceAndWithoutACache) {
  OnAnotherThread([] {
    EndThread();
    EXPECT_FALSE(thread_state.exited);
    Free(Allocate(kBytes));
    EndThread();
    EXPECT_TRUE(thread_state.exited);
    EndThread();
    ThreadCache::FlushThread();
  });
}

TEST_F(ThreadLifeTest, FreesWorkAfterTheCacheWasReleased) {
  OnAnotherThread([] {
    std::vector<void*> blocks;
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      for (int i = 0; i < 20; ++i) blocks.push_back(AllocateOfClass(c));
    }
    EndThread();
    std::set<Slab*> slabs;
    for (void* p : blocks) slabs.insert(Slab::Of(p));
    EXPECT_EQ(CountOrphans(), slabs.size());
    for (void* p : blocks) Free(p);
    EXPECT_EQ(thread_state.cache, &no_cache);
    EXPECT_EQ(CountOrphans(), 0u);
  });
}

TEST_F(ThreadLifeTest, AllocationsAfterTheCacheWasReleasedAreStray) {
  const size_t open = OpenCaches();
  OnAnotherThread([&] {
    Free(Allocate(kBytes));
    EndThread();
    std::vector<void*> blocks;
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      for (int i = 0; i < 20; ++i) {
        void* const p = AllocateOfClass(c);
        ASSERT_EQ(OwnerOf(p), StrayCache());
        memset(p, i, BlockBytes(c));
        blocks.push_back(p);
      }
    }
    EXPECT_EQ(thread_state.cache, &no_cache);
    VerifyAll();
    for (void* p : blocks) Free(p);
    // What was freed is served again.
    const uint64_t slabs = StrayCache()->counters().slabs_made;
    for (int i = 0; i < 1000; ++i) Free(Allocate(kBytes));
    EXPECT_EQ(StrayCache()->counters().slabs_made, slabs);
  });
  EXPECT_LE(OpenCaches(), open + 1);
}

TEST_F(ThreadLifeTest, ManyStrayThreadsShareOneCache) {
  constexpr size_t kThreads = 4;
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([thread] {
      Free(Allocate(kBytes));
      EndThread();
      std::vector<char*> blocks;
      for (size_t i = 0; i < 2000; ++i) {
        const size_t bytes = i % 500 + 1;
        char* const p = static_cast<char*>(Allocate(bytes));
        EXPECT_EQ(OwnerOf(p), StrayCache());
        memset(p, static_cast<int>(thread), bytes);
        blocks.push_back(p);
        if (i % 3 == 0) {
          EXPECT_EQ(*blocks.front(), static_cast<char>(thread));
          Free(blocks.front());
          blocks.erase(blocks.begin());
        }
      }
      for (char* p : blocks) {
        EXPECT_EQ(*p, static_cast<char>(thread));
        Free(p);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// --- Destructors of threads. ---

// In the last round TSan takes the thread for gone.
constexpr int kRounds = PTHREAD_DESTRUCTOR_ITERATIONS - (kUnderTsan ? 1 : 0);

struct Rounds {
  pthread_key_t key;
  int left = kRounds;
  int with_cache = 0;
  void* own = nullptr;            // Allocated by the thread or in a round.
  std::vector<void*> for_others = {};  // For the test to free.
};

void UseHeapInDestructor(void* argument) {
  Rounds* const rounds = static_cast<Rounds*>(argument);
  Free(rounds->own);
  for (size_t bytes : {size_t{16}, kBytes, kSmallMaxBytes}) {
    char* const p = static_cast<char*>(Allocate(bytes));
    memset(p, 7, bytes);
    Free(p);
    rounds->for_others.push_back(Allocate(bytes));
  }
  rounds->own = Allocate(kBytes);
  if (thread_state.cache != &no_cache) ++rounds->with_cache;
  if (--rounds->left > 0) {
    pthread_setspecific(rounds->key, rounds);
  } else {
    Free(rounds->own);
  }
}

TEST_F(ThreadLifeTest, KeyDestructorsUseTheHeapInEveryRound) {
  for (pthread_key_t key : {early_key, late_key}) {
    const size_t open = OpenCaches();
    Rounds rounds{key};
    OnAnotherThread([&] {
      rounds.own = Allocate(kBytes);
      pthread_setspecific(key, &rounds);
    });
    EXPECT_EQ(rounds.left, 0);
    // Quarry's own destructor runs in the first round, between the two keys.
    EXPECT_EQ(rounds.with_cache, key == early_key ? 1 : 0);
    EXPECT_EQ(rounds.for_others.size(), 3u * kRounds);
    EXPECT_LE(OpenCaches(), open + 1);
    VerifyAll();
    for (void* p : rounds.for_others) Free(p);
  }
}

// The thread's first allocation is in the destructor of a key, after Quarry's
// place in that round: its own destructor has its turn in the next round.
TEST_F(ThreadLifeTest, ACacheMadeInAKeyDestructorIsGivenUp) {
  Free(Allocate(kBytes));
  ASSERT_NE(StrayCache(), nullptr);
  const size_t open = OpenCaches();
  Rounds rounds{late_key};
  void* const block = Allocate(kBytes);
  OnAnotherThread([&] {
    rounds.own = block;
    pthread_setspecific(late_key, &rounds);
  });
  EXPECT_EQ(rounds.left, 0);
  EXPECT_EQ(rounds.with_cache, 1);
  EXPECT_EQ(OpenCaches(), open);
  for (void* p : rounds.for_others) Free(p);
}

struct HeapUser {
  ~HeapUser() {
    EXPECT_FALSE(thread_state.exited);
    for (void* p : blocks) Free(p);
    for (size_t bytes = 0; bytes < 1000; bytes += 10) Free(Allocate(bytes));
    *last = Allocate(kBytes);
  }
  std::vector<void*> blocks;
  void** last;
};

TEST_F(ThreadLifeTest, ThreadLocalDestructorsUseTheHeap) {
  const size_t open = OpenCaches();
  void* with_blocks;
  void* without_blocks;
  OnAnotherThread([&] {
    thread_local HeapUser user;
    for (int i = 0; i < 100; ++i) user.blocks.push_back(Allocate(kBytes));
    user.last = &with_blocks;
  });
  OnAnotherThread([&] {
    // The cache is made by the destructor.
    thread_local HeapUser user;
    user.last = &without_blocks;
  });
  EXPECT_EQ(OpenCaches(), open);
  // The second thread took up the slab that the first had left.
  EXPECT_EQ(CountOrphans(), 1u);
  Free(with_blocks);
  Free(without_blocks);
}

// --- Many threads. ---

TEST_F(ThreadLifeTest, ManyThreadsInTurnNeedNoMoreMemoryThanAFew) {
  constexpr int kThreads = 20000;
  constexpr int kWarmUp = 500;
  void* left[16] = {};
  size_t mapped = 0;
  size_t open = 0;
  for (int i = 0; i < kThreads; ++i) {
    OnAnotherThread([&] {
      for (size_t bytes : {size_t{16}, kBytes, size_t{1000}}) {
        void* const p = Allocate(bytes);
        memset(p, 1, bytes);
        Free(p);
      }
      // One block of each thread outlives the 15 next.
      void*& slot = left[i % 16];
      if (slot != nullptr) Free(slot);
      slot = Allocate(kBytes + static_cast<size_t>(i) % 5 * 100);
    });
    if (i == kWarmUp) {
      mapped = MappedBytes();
      open = OpenCaches();
    }
  }
  EXPECT_EQ(MappedBytes(), mapped);
  EXPECT_EQ(OpenCaches(), open);
  EXPECT_LE(CountOrphans(), 16u);
  size_t caches = 0;
  cache_registry.ForEach([&](ThreadCache*) { ++caches; });
  EXPECT_LT(caches, 50u);
  for (void* p : left) Free(p);
}

// Each has more than is parked, and frees all of it.
TEST_F(ThreadLifeTest, OneThreadAfterTheOtherNeedsNoMoreMemoryThanTheFirst) {
  const auto work = [] {
    std::vector<void*> blocks;
    for (int i = 0; i < 8000; ++i) blocks.push_back(Allocate(8000));
    for (void* p : blocks) Free(p);
  };
  OnAnotherThread(work);
  const size_t mapped = MappedBytes();
  for (int i = 0; i < 8; ++i) OnAnotherThread(work);
  EXPECT_EQ(MappedBytes(), mapped);
}

// One thread allocates what another frees.
TEST_F(ThreadLifeTest, BlocksHandedOverForEverNeedBoundedMemory) {
  constexpr size_t kCycles = 100000;
  constexpr size_t kBatch = 8;
  constexpr size_t kPlaces = 32;
  struct Place {
    std::atomic<bool> full{false};
    char* blocks[kBatch];
  };
  Place ring[kPlaces];
  std::thread consumer([&] {
    for (size_t cycle = 0; cycle < kCycles; ++cycle) {
      Place& place = ring[cycle % kPlaces];
      while (!place.full.load(std::memory_order_acquire)) {
        std::this_thread::yield();
      }
      for (char* p : place.blocks) {
        ASSERT_EQ(*p, static_cast<char>(cycle));
        Free(p);
      }
      place.full.store(false, std::memory_order_release);
    }
  });
  size_t mapped = 0;
  for (size_t cycle = 0; cycle < kCycles; ++cycle) {
    Place& place = ring[cycle % kPlaces];
    while (place.full.load(std::memory_order_acquire)) {
      std::this_thread::yield();
    }
    for (size_t i = 0; i < kBatch; ++i) {
      place.blocks[i] = static_cast<char*>(Allocate((cycle % 10 + 1) * 100));
      *place.blocks[i] = static_cast<char>(cycle);
    }
    place.full.store(true, std::memory_order_release);
    if (cycle == kCycles / 10) mapped = MappedBytes();
  }
  consumer.join();
  // A few slabs more or less in flight; a leak would take hundreds of MiB.
  EXPECT_LE(MappedBytes(), mapped + (size_t{16} << 20));
}

// Blocks wander between threads that come and go, so that every way in which a
// slab changes hands meets every other.
TEST_F(ThreadLifeTest, NoBlockIsLostInAStormOfThreads) {
  constexpr size_t kSlots = 256;
  constexpr int kThreads = 3;
  constexpr int kLives = kUnderTsan ? 50 : 150;
  struct Block {
    size_t bytes;
    unsigned char* begin() {
      return reinterpret_cast<unsigned char*>(this + 1);
    }
    unsigned char* end() {
      return reinterpret_cast<unsigned char*>(this) + bytes;
    }
  };
  static std::atomic<Block*> slots[kSlots];
  const auto make = [](size_t bytes) {
    Block* const block = static_cast<Block*>(Allocate(bytes));
    block->bytes = bytes;
    memset(block->begin(), static_cast<int>(bytes % 255),
           bytes - sizeof(Block));
    return block;
  };
  const auto discard = [](Block* block) {
    if (block == nullptr) return;
    for (const unsigned char* p = block->begin(); p < block->end(); ++p) {
      QUARRY_CHECK(*p == block->bytes % 255);
    }
    Free(block);
  };
  const auto live = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < 400; ++i) {
      std::atomic<Block*>& slot = slots[random() % kSlots];
      if (random() % 3 == 0) {
        discard(slot.exchange(nullptr, std::memory_order_acq_rel));
      } else {
        const size_t bytes = random() % 8 == 0 ? 10000 + random() % 6000
                                               : 16 + random() % 600;
        discard(slot.exchange(make(bytes), std::memory_order_acq_rel));
      }
      if (random() % 200 == 0) ThreadCache::FlushThread();
    }
    // Some end early, and go on with the stray cache and remote frees.
    if (random() % 4 == 0) {
      EndThread();
      for (std::atomic<Block*>& slot : slots) {
        if (random() % 4 != 0) continue;
        discard(slot.exchange(random() % 2 == 0 ? make(kBytes) : nullptr,
                              std::memory_order_acq_rel));
      }
    }
  };
  const uint64_t seed = TestSeed();
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int life = 0; life < kLives; ++life) {
        OnAnotherThread([&] {
          live(seed + static_cast<uint64_t>(thread * kLives + life));
        });
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    std::this_thread::yield();
    VerifyAll();
  }
  for (std::thread& thread : threads) thread.join();
  VerifyAll();
  for (std::atomic<Block*>& slot : slots) discard(slot.exchange(nullptr));
}

// --- Without the fast path. ---

TEST_F(ThreadLifeTest, EveryCallIsSlowAfterLeavingTheFastPath) {
  OnAnotherThread([] {
    std::vector<void*> blocks;
    for (int i = 0; i < 100; ++i) blocks.push_back(Allocate(kBytes));
    for (int i = 0; i < 50; ++i) {
      Free(blocks.back());
      blocks.pop_back();
    }
    LeaveFastPath();
    for (void* p : blocks) {
      EXPECT_EQ(OwnerOf(p), thread_state.cache);
      EXPECT_FALSE(TryPush(p));
      Free(p);
      EXPECT_EQ(ThreadCache::TryPop(kBytes), nullptr);
    }
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      void* const p = AllocateOfClass(c);
      EXPECT_EQ(thread_state.cache->MagazineBlocks(c), 0u);
      EXPECT_FALSE(TryPush(p));
      Free(p);
      EXPECT_EQ(thread_state.cache->MagazineBlocks(c), 0u);
    }
    VerifyAll();
  });
}

TEST_F(ThreadLifeTest, AThreadThatStartsPerturbedHasNoFastPath) {
  settings.perturb_byte = 1;
  OnAnotherThread([] {
    void* const p = Allocate(kBytes);
    EXPECT_NE(thread_state.cache, &no_cache);
    EXPECT_EQ(thread_state.tag, 0u);
    EXPECT_EQ(ThreadCache::TryPop(kBytes), nullptr);
    EXPECT_FALSE(TryPush(p));
    Free(p);
  });
  settings.perturb_byte = 0;
}

// --- Fork. ---

TEST_F(ThreadLifeTest, AForksChildHasTheHeapOfItsThread) {
  void* const p = Allocate(kBytes);
  memset(p, 5, kBytes);
  const pid_t child = fork();
  if (child == 0) {
    QUARRY_CHECK(OwnerOf(p) == thread_state.cache);
    QUARRY_CHECK(static_cast<char*>(p)[kBytes - 1] == 5);
    QUARRY_CHECK(TryPush(p));
    Free(Allocate(kBytes));
    VerifyAll();
    _exit(0);
  }
  EXPECT_EQ(StatusOf(child), 0);
  Free(p);
}

TEST_F(ThreadLifeTest, AThreadWithoutACacheMayFork) {
  OnAnotherThread([] {
    const pid_t child = fork();
    if (child == 0) {
      Free(Allocate(kBytes));
      VerifyAll();
      _exit(0);
    }
    EXPECT_EQ(StatusOf(child), 0);
  });
}

// Every mark that waits for a token is taken in, though the thread that had the
// token stayed behind.
TEST_F(ThreadLifeTest, AForksChildDrainsWithoutTokens) {
  constexpr size_t kBlocks = 3;
  void* mine[kBlocks];
  void* other[kBlocks];
  void* orphan[kBlocks];
  Worker worker;
  for (void*& p : mine) p = Allocate(kBytes);
  worker.Do([&] {
    for (void*& p : other) p = Allocate(2 * kBytes);
  });
  OnAnotherThread([&] {
    for (void*& p : orphan) p = Allocate(3 * kBytes);
  });
  const auto mark = [](void* p) {
    Slab* const slab = Slab::Of(p);
    return MarkFreed(slab, slab->IndexOf(p));
  };
  // One thread is between these calls and PassToken().
  for (void** blocks : {mine, other, orphan}) {
    EXPECT_EQ(mark(blocks[0]), RemoteBitmap::Mark::kFirst);
    EXPECT_EQ(mark(blocks[1]), RemoteBitmap::Mark::kAdded);
  }
  for (const size_t parked_caches : {0, 16}) {
    SCOPED_TRACE(parked_caches);
    settings.parked_caches = parked_caches;
    EXPECT_EQ(InChild([&] {
                VerifyAll();
                QUARRY_CHECK(OwnerOf(mine[0]) == thread_state.cache);
                if (parked_caches != 0) {
                  // Of another thread's cache nothing is drained before that is closed.
                  QUARRY_CHECK(OwnerOf(other[2])->is_bereft);
                  QUARRY_CHECK(!OwnerOf(other[2])->pending().IsEmpty());
                  Free(other[2]);
                  other[2] = nullptr;
                  (void)cache_registry.CloseParked(true);
                } else {
                  QUARRY_CHECK(IsOrphan(Slab::Of(other[2])));
                }
                QUARRY_CHECK(IsOrphan(Slab::Of(orphan[2])));
                for (void** blocks : {mine, other, orphan}) {
                  if (blocks[2] == nullptr) continue;
                  Slab* const slab = Slab::Of(blocks[2]);
                  QUARRY_CHECK(slab->IsFree(slab->IndexOf(blocks[0])));
                  QUARRY_CHECK(slab->IsFree(slab->IndexOf(blocks[1])));
                  Free(blocks[2]);
                }
                ThreadCache::FlushThread();
                QUARRY_CHECK(CountOrphans() == 0);
                QUARRY_CHECK(SlabBytesInUse() == 0);
              }),
              0);
  }
  settings.parked_caches = 0;
  for (void** blocks : {mine, other, orphan}) {
    PassToken(Slab::Of(blocks[0]));
    Free(blocks[2]);
  }
  worker.Do([] { ThreadCache::FlushThread(); });
}

// A thread moves its magazine and the spare without a lock.
TEST_F(ThreadLifeTest, AForksChildFindsAMovingMagazineInOnePlace) {
  Worker worker;
  std::vector<void*> blocks(1000);
  Magazine* magazine = nullptr;
  worker.Do([&] {
    for (void*& p : blocks) p = Allocate(kBytes);
    QUARRY_CHECK(ThreadCache::FindMagazine(blocks.back(), &magazine));
    void* last;
    // Until the magazine has just become the spare.
    do {
      last = blocks.back();
      blocks.pop_back();
      Free(last);
    } while (magazine->head != nullptr);
    // As if it still were the magazine, too.
    magazine->head = static_cast<FreeBlock*>(last);
    magazine->room = -1;
  });
  EXPECT_EQ(InChild([&] {
              // Its cache was closed, and each block put back once.
              VerifyAll();
              for (void* p : blocks) Free(p);
              ThreadCache::FlushThread();
              QUARRY_CHECK(CountOrphans() == 0);
              QUARRY_CHECK(SlabBytesInUse() == 0);
            }),
            0);
  worker.Do([&] {
    magazine->head = nullptr;
    magazine->room = magazine->capacity;
    for (void* p : blocks) Free(p);
  });
}

// Nor does it need one to hold a block of another's slab until it marks several: of the
// first, the place was written, and nothing yet counted.
TEST_F(ThreadLifeTest, AForksChildForgetsTheFirstBlockThatAThreadWasAboutToHold) {
  void* const p = Allocate(kBytes);
  RemoteBlock block;
  ASSERT_TRUE(RemoteBlock::Find(p, PageMap::TagOf(p), &block));
  RemoteBatch with_block;
  BlockWord displaced{};
  ASSERT_TRUE(with_block.Add(block, &displaced));
  size_t index = 0;
  while (with_block.entries()[index].bits == 0) ++index;
  std::vector<ThreadCache*> caches;
  do {
    caches.push_back(cache_registry.Take());
  } while (caches.back()->remote_batch().frees() != 0);
  ThreadCache* const cache = caches.back();
  auto& entry = const_cast<BlockWord&>(cache->remote_batch().entries()[index]);
  entry.place = block.place;
  EXPECT_EQ(InChild([&] {
              QUARRY_CHECK(!cache->is_open);
              cache->Verify(/*with_magazines=*/true);
            }),
            0);
  entry.place = 0;
  for (ThreadCache* taken : caches) cache_registry.Give(taken);
  Free(p);
}

// How many pages a child of a fork copies before it does anything.
long FaultsOfChild() {
  int pipes[2];
  QUARRY_CHECK(pipe(pipes) == 0);
  const pid_t child = fork();
  if (child == 0) {
    rusage usage;
    QUARRY_CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    QUARRY_CHECK(write(pipes[1], &usage.ru_minflt, sizeof(long)) == sizeof(long));
    _exit(0);
  }
  long faults = 0;
  QUARRY_CHECK(read(pipes[0], &faults, sizeof(faults)) == sizeof(faults));
  EXPECT_EQ(StatusOf(child), 0);
  close(pipes[0]);
  close(pipes[1]);
  return faults;
}

// A page that it writes to is copied, and as a rule it ends soon.
TEST_F(ThreadLifeTest, AForksChildLeavesTheCachesOfOthersAlone) {
  const auto faults_of_child = [](size_t parked_caches) {
    settings.parked_caches = parked_caches;
    const long faults = FaultsOfChild();
    settings.parked_caches = 0;
    return faults;
  };
  const long without_others = faults_of_child(16);
  constexpr size_t kThreads = 8;
  std::vector<Worker> workers(kThreads);
  std::vector<std::vector<void*>> kept(kThreads);
  for (size_t t = 0; t < kThreads; ++t) {
    workers[t].Do([&] {
      for (size_t bytes = 64; bytes <= 8192; bytes += 64) {
        std::vector<void*> freed(40);
        for (void*& p : freed) p = Allocate(bytes);
        kept[t].push_back(Allocate(bytes));
        for (void* p : freed) Free(p);
      }
    });
  }
  const long when_closed = faults_of_child(0) - without_others;
  const long when_parked = faults_of_child(16) - without_others;
  // Of each, the page that its lock is on.
  EXPECT_LT(when_parked, when_closed / 2);
  for (size_t t = 0; t < kThreads; ++t) {
    workers[t].Do([&] {
      for (void* p : kept[t]) Free(p);
    });
  }
}

// Nor does it write to the records of slabs, but of those with remote frees.
TEST_F(ThreadLifeTest, AForksChildLeavesSlabsAlone) {
  Worker worker;
  constexpr size_t kOfEach = size_t{64} << 20;
  const auto allocate = [] {
    std::vector<void*> blocks;
    for (size_t bytes = 0; bytes < kOfEach; bytes += 2048) {
      blocks.push_back(Allocate(2048));
    }
    return blocks;
  };
  const long with_none = FaultsOfChild();
  const std::vector<void*> mine = allocate();
  // More than that many records lie on as many pages.
  const long pages =
      static_cast<long>(mine.size() * 2048 / kSlabBytes * sizeof(Slab) / PageBytes());
  EXPECT_LT(FaultsOfChild(), with_none + pages / 2) << "its own";
  std::vector<void*> orphans;
  OnAnotherThread([&] { orphans = allocate(); });
  EXPECT_LT(FaultsOfChild(), with_none + pages / 2) << "orphans";
  std::vector<void*> others;
  worker.Do([&] { others = allocate(); });
  // Or it closes others' caches at once.
  settings.parked_caches = 16;
  EXPECT_LT(FaultsOfChild(), with_none + pages / 2) << "others' in use";
  settings.parked_caches = 0;
  worker.Do([&] {
    for (void* p : others) Free(p);
    ThreadCache::FlushThread();
  });
  for (void* p : mine) Free(p);
  for (void* p : orphans) Free(p);
}

// A page that the child writes to is copied, so it notes beside the blocks what it
// frees of its parent's, and allocates from slabs of its own.
TEST_F(ThreadLifeTest, AForksChildDoesNotWriteToWhatItFrees) {
  constexpr uint64_t kContent = 0x0123456789abcdef;
  std::vector<uint64_t*> blocks;
  for (int i = 0; i < 50000; ++i) {
    blocks.push_back(static_cast<uint64_t*>(Allocate(kBytes)));
    *blocks.back() = kContent;
  }
  EXPECT_EQ(InChild([&] {
              QUARRY_CHECK(IsInherited(blocks[0]));
              // What is in the magazine, which is nobody's yet.
              std::vector<void*> own(500);
              for (void*& p : own) p = Allocate(kBytes);
              // Of each slab some.
              for (size_t i = 0; i < blocks.size(); i += 2) {
                FreeLater(blocks[i]);
              }
              for (uint64_t* p : blocks) QUARRY_CHECK(*p == kContent);
              for (int i = 0; i < 1000; ++i) {
                own.push_back(Allocate(kBytes));
                QUARRY_CHECK(!IsInherited(own.back()));
                QUARRY_CHECK(std::find(blocks.begin(), blocks.end(),
                                       own.back()) == blocks.end());
              }
              for (uint64_t* p : blocks) QUARRY_CHECK(*p == kContent);
              VerifyAll();
              // Not for ever.
              const std::set<void*> inherited(blocks.begin(), blocks.end());
              while (inherited.count(own.back()) == 0) {
                QUARRY_CHECK(own.size() < blocks.size());
                own.push_back(Allocate(kBytes));
              }
              QUARRY_CHECK(!IsInherited(own.back()));
              QUARRY_CHECK(TryPush(own.back()));
              own.pop_back();
              for (void* p : own) FreeHereOrLater(p);
              for (size_t i = 1; i < blocks.size(); i += 2) {
                FreeHereOrLater(blocks[i]);
              }
              ThreadCache::FlushThread();
              VerifyAll();
              QUARRY_CHECK(SlabBytesInUse() == 0);
            }),
            0);
  for (uint64_t* p : blocks) Free(p);
}

// Of lists that a pass was amid when the process forked: those that it had not come to are
// one list now with those that it was through.
TEST_F(ThreadLifeTest, AForksChildLooksAtTheSlabsThatAPassHadLeft) {
  const size_t page_bytes = PageBytes();
  // So many of each fullness that the first step ends within or behind the first list.
  constexpr size_t kSlabs = 2 * SlabPass::kMostPurges;
  std::map<Slab*, std::vector<char*>> by_slab;
  for (size_t full = 0; full < 2 * kSlabs;) {
    char* const p = static_cast<char*>(Allocate(page_bytes));
    memset(p, 0x55, page_bytes);
    Slab* const slab = Slab::Of(p);
    std::vector<char*>& blocks = by_slab[slab];
    blocks.push_back(p);
    if (blocks.size() == slab->blocks()) ++full;
  }
  std::vector<char*> freed;
  bool many = false;
  for (auto& [slab, blocks] : by_slab) {
    if (blocks.size() < slab->blocks()) continue;
    many = !many;
    const size_t left = many ? slab->blocks() / 2 : slab->blocks() - 1;
    while (blocks.size() > left) {
      freed.push_back(blocks.back());
      blocks.pop_back();
      Free(freed.back());
    }
  }
  ThreadCache::FlushThread();
  const auto purged = [&] {
    return std::count_if(freed.begin(), freed.end(), [page_bytes](const char* p) {
      return p[page_bytes - 1] == 0;
    });
  };
  ThreadCache* const cache = thread_state.cache;
  bool gave_back = false;
  EXPECT_TRUE(cache->Tidy(/*is_urgent=*/true, &gave_back, /*most_steps=*/1));
  EXPECT_GT(purged(), 0);
  EXPECT_LT(purged(), static_cast<ptrdiff_t>(freed.size()));
  EXPECT_EQ(InChild([&] {
              QUARRY_CHECK(IsInherited(freed[0]));
              while (cache->Tidy(/*is_urgent=*/false, &gave_back)) {
              }
              QUARRY_CHECK(purged() == static_cast<ptrdiff_t>(freed.size()));
              VerifyAll();
            }),
            0);
  for (const auto& [slab, blocks] : by_slab) {
    for (char* p : blocks) Free(p);
  }
}

// However much it inherited: it may live for a moment.
TEST_F(ThreadLifeTest, AForksChildMakesNoHugePageForItsFirstSlabs) {
  std::vector<void*> blocks = {Allocate(kBytes)};
  Arena& arena = *thread_state.cache->arena();
  while (arena.statistics().in_use_bytes < 3 * kHugePageBytes) {
    blocks.push_back(Allocate(kBytes));
  }
  EXPECT_EQ(InChild([&] {
              // Up to where its fourteenth slab begins a range.
              char* end;
              do {
                end = arena.Allocate(kGranuleBytes / PageBytes(), kGranuleBytes)
                          ->end();
              } while ((reinterpret_cast<uintptr_t>(end) + 13 * kGranuleBytes) %
                           kHugePageBytes != 0);
              const size_t before = SlabBytesInUse();
              size_t dirty = arena.FreeDirtyBytes();
              // Of classes of which it inherited none.
              for (size_t i = 0; SlabBytesInUse() < before + 15 * kGranuleBytes;
                   ++i) {
                static_cast<void>(Allocate(i % 2 == 0 ? 2048 : 4096));
                QUARRY_CHECK(arena.FreeDirtyBytes() <= dirty);
                dirty = arena.FreeDirtyBytes();
              }
              VerifyAll();
            }),
            0);
  for (void* p : blocks) Free(p);
}

// It copies what little there is.
TEST_F(ThreadLifeTest, AForksChildOfASmallHeapFreesAsEver) {
  void* const p = Allocate(kBytes);
  EXPECT_EQ(InChild([&] {
              QUARRY_CHECK(!IsInherited(p));
              QUARRY_CHECK(TryPush(p));
            }),
            0);
  Free(p);
}

// The child of a child inherits from both.
TEST_F(ThreadLifeTest, AThreadOwnsTheLockOfItsCache)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (!CanFenceAllThreads()) GTEST_SKIP() << "no membarrier()";
  ThreadCache* cache = nullptr;
  // Without a pause, in which it may be parked.
  const size_t parked_caches = settings.parked_caches.exchange(0);
  OnAnotherThread([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Free(Allocate(kBytes));
    cache = thread_state.cache;
    EXPECT_TRUE(cache->lock().TryAcquireByBias());
    cache->lock().ReleaseByBias();
  });
  EXPECT_FALSE(cache->lock().TryAcquireByBias()) << "it was closed";
  EXPECT_FALSE(StrayCache()->lock().TryAcquireByBias()) << "many use it";
  settings.parked_caches = parked_caches;
}

TEST_F(ThreadLifeTest, AForkWaitsForTheOwnersOfCaches)
ABSL_NO_THREAD_SAFETY_ANALYSIS {
  std::atomic<bool> is_inside{false};
  std::thread owner([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Free(Allocate(kBytes));
    BiasedLock& lock = thread_state.cache->lock();
    lock.AcquireAsOwner();
    is_inside = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    is_inside = false;
    lock.ReleaseAsOwner();
  });
  while (!is_inside) std::this_thread::yield();
  EXPECT_EQ(InChild([&] {
              if (is_inside) _exit(1);
              Free(Allocate(kBytes));
            }),
            0);
  owner.join();
}

TEST_F(ThreadLifeTest, AForksChildForks) {
  std::vector<void*> first;
  for (int i = 0; i < 50000; ++i) first.push_back(Allocate(kBytes));
  EXPECT_EQ(InChild([&] {
              const Tag tag = thread_state.tag;
              void* const second = Allocate(2 * kBytes);
              FreeLater(first[0]);
              QUARRY_CHECK(!IsInherited(second));
              QUARRY_CHECK(InChild([&] {
                             QUARRY_CHECK(thread_state.tag != tag);
                             QUARRY_CHECK(IsInherited(second));
                             for (size_t i = 1; i < first.size(); ++i) {
                               FreeLater(first[i]);
                             }
                             FreeLater(second);
                             ThreadCache::FlushThread();
                             VerifyAll();
                             QUARRY_CHECK(SlabBytesInUse() == 0);
                           }) == 0);
              for (size_t i = 1; i < first.size(); ++i) FreeLater(first[i]);
              Free(second);
              ThreadCache::FlushThread();
              QUARRY_CHECK(SlabBytesInUse() == 0);
            }),
            0);
  for (void* p : first) Free(p);
}

// A cache that was closed, but is not yet on the list of those that are free,
// when its thread vanished.
TEST_F(ThreadLifeTest, AForksChildEndsTheExitsOfOthers) {
  ThreadCache* const cache = cache_registry.Take();
  cache->Close();
  const pid_t child = fork();
  if (child == 0) {
    QUARRY_CHECK(!cache->is_open);
    VerifyAll();
    QUARRY_CHECK(cache_registry.Take() == cache);
    cache_registry.Give(cache);
    VerifyAll();
    _exit(0);
  }
  EXPECT_EQ(StatusOf(child), 0);
  cache->Open(cache->tag(), cache->arena());
  cache_registry.Give(cache);
}

bool fork_handlers_allocate = false;
size_t fork_handlers_run = 0;
bool fork_handlers_find_cache = true;

void UseHeapInForkHandler() {
  if (!fork_handlers_allocate) return;
  ++fork_handlers_run;
  if (thread_state.cache == &no_cache) fork_handlers_find_cache = false;
  void* blocks[300];
  for (size_t i = 0; i < 300; ++i) blocks[i] = Allocate(i % 3 * 1000 + 16);
  Free(Allocate(kSmallMaxBytes));
  for (void* p : blocks) Free(p);
  ThreadCache::FlushThread();
}

TEST_F(ThreadLifeTest, ForkHandlersOfOthersMayAllocate) {
  Free(Allocate(16));
  fork_handlers_run = 0;
  fork_handlers_allocate = true;
  const pid_t child = fork();
  if (child == 0) {
    QUARRY_CHECK(fork_handlers_run == 2);
    QUARRY_CHECK(!has_every_lock);
    // All locks are free again, those that the handlers used and the others.
    OnAnotherThread([] { Free(Allocate(kBytes)); });
    VerifyAll();
    _exit(0);
  }
  fork_handlers_allocate = false;
  EXPECT_EQ(fork_handlers_run, 2u);
  EXPECT_FALSE(has_every_lock);
  OnAnotherThread([] { Free(Allocate(kBytes)); });
  EXPECT_EQ(StatusOf(child), 0);
}

// It has one before the locks are taken, and so makes no arena meanwhile.
TEST_F(ThreadLifeTest, ForkHandlersAllocateWithoutACache) {
  OnAnotherThread([] {
    fork_handlers_allocate = true;
    const pid_t child = fork();
    if (child == 0) {
      VerifyAll();
      _exit(0);
    }
    fork_handlers_allocate = false;
    EXPECT_TRUE(fork_handlers_find_cache);
    EXPECT_EQ(StatusOf(child), 0);
  });
}

// The blocks that helpers keep are the only ones of this size.
constexpr size_t kKeptBytes = 208;
constexpr size_t kHelpers = 3;
constexpr size_t kKept = 40;

struct ForkScene {
  void* kept[kHelpers][kKept];
  std::atomic<size_t> started{0};
  std::atomic<bool> stop{false};
  std::atomic<void*> slots[64] = {};
};

void HelpInScene(ForkScene* scene, size_t helper, uint64_t seed) {
  std::mt19937_64 random(seed + helper);
  for (void*& p : scene->kept[helper]) {
    p = Allocate(kKeptBytes);
    memset(p, static_cast<int>(helper + 1), kKeptBytes);
  }
  // No other thread gets a cache before, so that helpers are in both arenas.
  scene->started.fetch_add(1, std::memory_order_release);
  while (scene->started.load(std::memory_order_acquire) < kHelpers) {
    std::this_thread::yield();
  }
  while (!scene->stop.load(std::memory_order_acquire)) {
    // Some of it in threads that come and go.
    const auto work = [&] {
      for (int i = 0; i < 200; ++i) {
        std::atomic<void*>& slot = scene->slots[random() % 64];
        const size_t bytes = i % 16 == 0 ? kSmallMaxBytes : random() % 100;
        void* const p =
            slot.exchange(Allocate(bytes), std::memory_order_acq_rel);
        if (p != nullptr) Free(p);
      }
    };
    if (helper == 0) {
      OnAnotherThread(work);
    } else {
      work();
      if (random() % 8 == 0) ThreadCache::FlushThread();
    }
  }
  for (void* p : scene->kept[helper]) Free(p);
}

// Calls nothing that allocates from anything but Quarry: the heap of a sanitizer
// does not survive a fork while other threads are in it.
void LiveAsChild(ForkScene* scene, bool with_threads) {
  ThreadCache* const mine = thread_state.cache;
  ThreadCache* const stray = StrayCache();
  cache_registry.ForEach([&](ThreadCache* cache) {
    QUARRY_CHECK(!cache->is_open || cache == mine || cache == stray);
  });
  VerifyAll();
  // What the others kept is as it was, in orphans.
  for (size_t helper = 0; helper < kHelpers; ++helper) {
    for (void* p : scene->kept[helper]) {
      QUARRY_CHECK(IsOrphan(Slab::Of(p)));
      for (size_t i = 0; i < kKeptBytes; ++i) {
        QUARRY_CHECK(static_cast<char*>(p)[i] ==
                     static_cast<char>(helper + 1));
      }
    }
  }
  // At least one of the helpers was in our arena.
  const uint64_t adoptions = mine->counters().adoptions;
  void* const adopted = Allocate(kKeptBytes);
  QUARRY_CHECK(mine->counters().adoptions == adoptions + 1);
  QUARRY_CHECK(OwnerOf(adopted) == mine);
  VerifyAll();
  for (std::atomic<void*>& slot : scene->slots) {
    if (void* const p = slot.load(std::memory_order_relaxed)) Free(p);
  }
  for (auto& blocks : scene->kept) {
    for (void* p : blocks) Free(p);
  }
  Free(adopted);
  void* blocks[500];
  for (size_t i = 0; i < 500; ++i) blocks[i] = Allocate(i * 10);
  VerifyAll();
  for (void* p : blocks) Free(p);
  if (with_threads) {
    OnAnotherThread([] {
      for (size_t i = 0; i < 500; ++i) Free(Allocate(i * 10));
    });
  }
  ThreadCache::FlushThread();
  VerifyAll();
}

TEST_F(ThreadLifeTest, ForksWhileOtherThreadsAllocate) {
  // Under TSan a child of several threads runs unchecked, and slowly.
  const int kForks = kUnderTsan ? 20 : kUnderAsan ? 100 : 400;
  const uint64_t seed = TestSeed();
  ForkScene scene;
  Free(Allocate(16));
  std::vector<std::thread> helpers;
  for (size_t helper = 0; helper < kHelpers; ++helper) {
    helpers.emplace_back(HelpInScene, &scene, helper, seed);
  }
  while (scene.started.load(std::memory_order_acquire) < kHelpers) {
    std::this_thread::yield();
  }
  for (int i = 0; i < kForks; ++i) {
    fork_handlers_allocate = i % 4 == 0;
    const pid_t child = fork();
    fork_handlers_allocate = false;
    if (child == 0) {
      LiveAsChild(&scene, !kUnderTsan && !kUnderAsan && i % 8 == 0);
      _exit(0);
    }
    const int status = StatusOf(child);
    EXPECT_EQ(status, 0) << "in child " << i;
    if (status != 0) break;
  }
  scene.stop.store(true, std::memory_order_release);
  for (std::thread& helper : helpers) helper.join();
  for (std::atomic<void*>& slot : scene.slots) {
    if (void* const p = slot.load()) Free(p);
  }
}

}  // namespace
}  // namespace quarry
