#include "tcache/remote_bitmap.h"

#include <atomic>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

using Mark = RemoteBitmap::Mark;

constexpr size_t kWords = kMaxBlocks / 64;

struct Bitmap : RemoteBitmap {
  Bitmap() : Bitmap(std::make_unique<std::atomic<uint64_t>[]>(kWords)) {}

 private:
  explicit Bitmap(std::unique_ptr<std::atomic<uint64_t>[]> words)
      : RemoteBitmap(words.get()), owned_words_(std::move(words)) {}
  std::unique_ptr<std::atomic<uint64_t>[]> owned_words_;
};

template <typename Visit>
void ForEachBlock(size_t index, uint64_t word, Visit visit) {
  for (; word != 0; word &= word - 1) {
    visit(index * 64 + static_cast<size_t>(std::countr_zero(word)));
  }
}

std::set<size_t> DrainAsSet(RemoteBitmap& bitmap) {
  std::set<size_t> blocks;
  bitmap.Drain([&](size_t index, uint64_t word) {
    ForEachBlock(index, word,
                 [&](size_t block) { EXPECT_TRUE(blocks.insert(block).second); });
  });
  return blocks;
}

TEST(RemoteBitmap, StartsEmpty) {
  Bitmap bitmap;
  EXPECT_TRUE(bitmap.IsEmpty());
  EXPECT_FALSE(bitmap.IsMarked(0));
  EXPECT_TRUE(DrainAsSet(bitmap).empty());
}

TEST(RemoteBitmap, TheFirstMarkAloneGetsTheToken) {
  Bitmap bitmap;
  EXPECT_EQ(bitmap.MarkFreed(7), Mark::kFirst);
  EXPECT_EQ(bitmap.MarkFreed(8), Mark::kAdded) << "the same word";
  EXPECT_EQ(bitmap.MarkFreed(64), Mark::kAdded) << "another word";
  EXPECT_EQ(bitmap.MarkFreed(kMaxBlocks - 1), Mark::kAdded);
  EXPECT_FALSE(bitmap.IsEmpty());
  EXPECT_TRUE(bitmap.IsMarked(64));
  EXPECT_FALSE(bitmap.IsMarked(65));
  EXPECT_EQ(DrainAsSet(bitmap),
            (std::set<size_t>{7, 8, 64, kMaxBlocks - 1}));
}

TEST(RemoteBitmap, TheFirstMarkAfterADrainGetsTheTokenAgain) {
  Bitmap bitmap;
  ASSERT_EQ(bitmap.MarkFreed(7), Mark::kFirst);
  ASSERT_EQ(DrainAsSet(bitmap).size(), 1u);
  EXPECT_TRUE(bitmap.IsEmpty());
  EXPECT_EQ(bitmap.MarkFreed(7), Mark::kFirst);
}

TEST(RemoteBitmap, ABlockMarkedTwiceIsReportedAndCountedOnce) {
  Bitmap bitmap;
  ASSERT_EQ(bitmap.MarkFreed(100), Mark::kFirst);
  EXPECT_EQ(bitmap.MarkFreed(100), Mark::kAlreadyFree);
  ASSERT_EQ(bitmap.MarkFreed(200), Mark::kAdded);
  EXPECT_EQ(bitmap.MarkFreed(200), Mark::kAlreadyFree);
  EXPECT_EQ(DrainAsSet(bitmap), (std::set<size_t>{100, 200}));
}

TEST(RemoteBitmap, EveryBlockHasABitOfItsOwn) {
  Bitmap bitmap;
  std::set<size_t> all;
  for (size_t block = 0; block < kMaxBlocks; ++block) {
    EXPECT_EQ(bitmap.MarkFreed(block),
              block == 0 ? Mark::kFirst : Mark::kAdded);
    all.insert(all.end(), block);
  }
  EXPECT_EQ(DrainAsSet(bitmap), all);
}

// A drain that cleared the summary after the words would clear the bit that
// this mark sets, and the block would stay behind without a token.
TEST(RemoteBitmap, AMarkDuringADrainGetsTheTokenAndStays) {
  Bitmap bitmap;
  ASSERT_EQ(bitmap.MarkFreed(3), Mark::kFirst);
  ASSERT_EQ(bitmap.MarkFreed(64), Mark::kAdded);
  bool marked = false;
  bitmap.Drain([&](size_t index, uint64_t) {
    if (index != 0) return;
    EXPECT_EQ(bitmap.MarkFreed(5), Mark::kFirst);
    marked = true;
  });
  ASSERT_TRUE(marked);
  EXPECT_FALSE(bitmap.IsEmpty());
  EXPECT_EQ(DrainAsSet(bitmap), (std::set<size_t>{5}));
}

// Of a word that the drain has yet to come to, the mark goes with the word.
TEST(RemoteBitmap, AMarkAheadOfADrainGoesWithIt) {
  Bitmap bitmap;
  ASSERT_EQ(bitmap.MarkFreed(3), Mark::kFirst);
  ASSERT_EQ(bitmap.MarkFreed(64), Mark::kAdded);
  std::set<size_t> drained;
  bitmap.Drain([&](size_t index, uint64_t word) {
    if (index == 0) {
      EXPECT_EQ(bitmap.MarkFreed(65), Mark::kAdded);
    }
    ForEachBlock(index, word, [&](size_t block) { drained.insert(block); });
  });
  EXPECT_EQ(drained, (std::set<size_t>{3, 64, 65}));
  EXPECT_TRUE(bitmap.IsEmpty());
}

TEST(RemoteBitmap, DrainAllFindsWhatTheSummaryDoesNotName) {
  auto words = std::make_unique<std::atomic<uint64_t>[]>(kWords);
  RemoteBitmap bitmap(words.get());
  // As if the thread were gone between the two halves of MarkFreed().
  words[9] = 6;
  ASSERT_TRUE(bitmap.IsEmpty());
  std::set<size_t> drained;
  bitmap.DrainAll(kWords, [&](size_t index, uint64_t word) {
    ForEachBlock(index, word, [&](size_t block) { drained.insert(block); });
  });
  EXPECT_EQ(drained, (std::set<size_t>{9 * 64 + 1, 9 * 64 + 2}));
  EXPECT_EQ(bitmap.MarkFreed(9 * 64 + 1), Mark::kFirst);
}

// In each round threads mark blocks, each its own, but in words that they share,
// and in all words, so that drains take long, while the holder of the token
// drains. There is never more than one token, and
// when all blocks are marked and no token is left, then all were drained.
TEST(RemoteBitmap, NoMarkIsLostWhileThreadsRace) {
  constexpr size_t kThreads = 3;
  constexpr size_t kBlocksEach = 10 * kWords;
  constexpr size_t kBlocks = kThreads * kBlocksEach;
  constexpr size_t kRounds = 1000;
  Bitmap bitmap;
  std::atomic<size_t> tokens{0};
  std::atomic<size_t> round{0};
  std::atomic<size_t> finished{0};
  size_t content[kMaxBlocks] = {};  // Not atomic: marks and drains order it.

  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t mine = 1; mine <= kRounds; ++mine) {
        while (round.load(std::memory_order_acquire) < mine) {
          std::this_thread::yield();
        }
        for (size_t i = 0; i < kBlocksEach; ++i) {
          const size_t block =
              i % kWords * 64 + i / kWords * kThreads + thread;
          content[block] = mine;
          switch (bitmap.MarkFreed(block)) {
            case Mark::kFirst:
              EXPECT_EQ(tokens.fetch_add(1, std::memory_order_acq_rel), 0u);
              break;
            case Mark::kAdded:
              break;
            case Mark::kAlreadyFree:
              ADD_FAILURE() << "block " << block << " was not drained";
          }
        }
        finished.fetch_add(1, std::memory_order_acq_rel);
      }
    });
  }

  for (size_t now = 1; now <= kRounds; ++now) {
    size_t drained = 0;
    round.store(now, std::memory_order_release);
    bool all_marked;
    do {
      all_marked = finished.load(std::memory_order_acquire) == now * kThreads;
      if (tokens.load(std::memory_order_acquire) == 0) {
        std::this_thread::yield();
        continue;
      }
      tokens.fetch_sub(1, std::memory_order_acq_rel);
      bitmap.Drain([&](size_t index, uint64_t word) {
        ForEachBlock(index, word, [&](size_t block) {
          EXPECT_EQ(content[block], now);
          ++drained;
        });
      });
    } while (!all_marked);
    EXPECT_EQ(drained, kBlocks);
    EXPECT_TRUE(bitmap.IsEmpty());
    if (HasFailure()) break;
  }
  round.store(kRounds);
  for (std::thread& thread : threads) thread.join();
}

TEST(RemoteBitmap, AgreesWithASet) {
  std::mt19937_64 random(TestSeed());
  Bitmap bitmap;
  std::set<size_t> model;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 50 == 0) {
      EXPECT_EQ(DrainAsSet(bitmap), model);
      model.clear();
      continue;
    }
    const size_t block = random() % kMaxBlocks;
    const Mark expected = model.count(block) != 0 ? Mark::kAlreadyFree
                          : model.empty()         ? Mark::kFirst
                                                  : Mark::kAdded;
    ASSERT_EQ(bitmap.MarkFreed(block), expected);
    model.insert(block);
    ASSERT_TRUE(bitmap.IsMarked(block));
  }
}

}  // namespace
}  // namespace quarry
