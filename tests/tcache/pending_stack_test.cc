#include "tcache/pending_stack.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "arena/process_arenas.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

// Slabs with no blocks in use, which is all that a stack of them needs.
class PendingStackTest : public testing::Test {
 protected:
  static constexpr size_t kSlabs = 8;

  PendingStackTest() {
    for (Slab*& slab : slabs_) {
      slab = Slab::Make(&ArenaAt(0), kFirstClass, Filling::kUnknown);
    }
  }
  ~PendingStackTest() override {
    for (Slab* slab : slabs_) Slab::Return(slab);
  }

  size_t IndexOf(const Slab* slab) const {
    size_t index = 0;
    while (slabs_[index] != slab) ++index;
    return index;
  }

  Slab* slabs_[kSlabs];
};

std::vector<Slab*> AsVector(Slab* first) {
  std::vector<Slab*> slabs;
  for (; first != nullptr; first = first->pending_next) slabs.push_back(first);
  return slabs;
}

TEST_F(PendingStackTest, IsTakenWholeNewestFirst) {
  PendingStack stack;
  EXPECT_TRUE(stack.IsEmpty());
  EXPECT_EQ(stack.TakeAll(), nullptr);
  for (Slab* slab : slabs_) EXPECT_TRUE(stack.Push(slab));
  EXPECT_FALSE(stack.IsEmpty());
  EXPECT_EQ(AsVector(stack.TakeAll()),
            std::vector<Slab*>(std::rbegin(slabs_), std::rend(slabs_)));
  EXPECT_TRUE(stack.IsEmpty());
}

TEST_F(PendingStackTest, RefusesWhileItIsClosed) {
  PendingStack stack;
  ASSERT_TRUE(stack.Push(slabs_[0]));
  EXPECT_EQ(stack.Close(), slabs_[0]);
  EXPECT_FALSE(stack.Push(slabs_[1]));
  EXPECT_FALSE(stack.IsEmpty()) << "so that nobody takes it for open";
  stack.Open();
  EXPECT_TRUE(stack.IsEmpty());
  EXPECT_TRUE(stack.Push(slabs_[1]));
  EXPECT_EQ(AsVector(stack.TakeAll()), (std::vector<Slab*>{slabs_[1]}));
}

TEST_F(PendingStackTest, ASlabMayBePushedAgainOnceItIsTaken) {
  PendingStack stack;
  ASSERT_TRUE(stack.Push(slabs_[0]));
  ASSERT_TRUE(stack.Push(slabs_[1]));
  Slab* const first = stack.TakeAll();
  Slab* const second = first->pending_next;
  // The taker has read the link of the first, and gives its token away.
  ASSERT_TRUE(stack.Push(first));
  EXPECT_EQ(second, slabs_[0]);
  EXPECT_EQ(second->pending_next, nullptr);
  EXPECT_EQ(AsVector(stack.TakeAll()), (std::vector<Slab*>{slabs_[1]}));
}

// Pushers take tokens wherever they find them, the taker gives them back. A
// stack that lost a push would leave a token taken for ever; one that took a
// slab twice would give its token back twice.
TEST_F(PendingStackTest, NoPushIsLostOrSeenTwiceWhileThreadsRace) {
  constexpr size_t kThreads = 3;
  constexpr size_t kPushesEach = 20000;
  PendingStack stack;
  std::atomic<bool> token_is_taken[kSlabs] = {};
  size_t pushes[kSlabs] = {};  // Guarded by the token.
  std::atomic<size_t> done{0};

  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      size_t pushed = 0;
      for (size_t i = thread; pushed < kPushesEach; ++i) {
        const size_t slab = i % kSlabs;
        if (token_is_taken[slab].exchange(true, std::memory_order_acquire)) {
          std::this_thread::yield();
          continue;
        }
        ++pushes[slab];
        EXPECT_TRUE(stack.Push(slabs_[slab]));
        ++pushed;
      }
      done.fetch_add(1, std::memory_order_release);
    });
  }
  size_t taken = 0;
  bool all_done;
  do {
    all_done = done.load(std::memory_order_acquire) == kThreads;
    if (stack.IsEmpty()) std::this_thread::yield();
    for (Slab* slab = stack.TakeAll(); slab != nullptr;) {
      Slab* const next = slab->pending_next;
      ++taken;
      const bool was_taken = token_is_taken[IndexOf(slab)].exchange(
          false, std::memory_order_release);
      EXPECT_TRUE(was_taken);
      slab = next;
    }
  } while (!all_done);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken, kThreads * kPushesEach);
  size_t counted = 0;
  for (size_t n : pushes) counted += n;
  EXPECT_EQ(counted, taken);
  EXPECT_TRUE(stack.IsEmpty());
}

// A token is at every moment with its pusher or on the stack: what Close() does
// not return was refused.
TEST_F(PendingStackTest, CloseAndPushAgreeOnWhoHasTheToken) {
  for (int round = 0; round < 1000; ++round) {
    PendingStack stack;
    std::atomic<bool> begun{false};
    bool is_pushed[kSlabs] = {};
    std::thread pusher([&] {
      begun.store(true);
      for (size_t i = 0; i < kSlabs; ++i) is_pushed[i] = stack.Push(slabs_[i]);
    });
    while (!begun.load()) std::this_thread::yield();
    const std::vector<Slab*> closed_with = AsVector(stack.Close());
    pusher.join();
    bool was_returned[kSlabs] = {};
    for (Slab* slab : closed_with) was_returned[IndexOf(slab)] = true;
    for (size_t i = 0; i < kSlabs; ++i) {
      ASSERT_EQ(is_pushed[i], was_returned[i]);
    }
  }
}

}  // namespace
}  // namespace quarry
