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

  [[nodiscard]] Mark MarkFreed(size_t block) {
    return MarkWord(owned_words_.get(), block / 64, uint64_t{1} << (block % 64));
  }

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
  // As if the thread were gone between the two halves of MarkWord().
  words[9] = 6;
  ASSERT_TRUE(bitmap.IsEmpty());
  std::set<size_t> drained;
  bitmap.DrainAll(kWords, [&](size_t index, uint64_t word) {
    ForEachBlock(index, word, [&](size_t block) { drained.insert(block); });
  });
  EXPECT_EQ(drained, (std::set<size_t>{9 * 64 + 1, 9 * 64 + 2}));
  EXPECT_EQ(bitmap.MarkWord(words.get(), 9, 2), Mark::kFirst);
}

TEST(RemoteBitmap, HasMarksWhereAWordOrTheSummaryIsNotEmpty) {
  auto words = std::make_unique<std::atomic<uint64_t>[]>(kWords);
  RemoteBitmap bitmap(words.get());
  EXPECT_FALSE(bitmap.HasMarks(kWords));
  words[9] = 6;
  EXPECT_TRUE(bitmap.HasMarks(kWords));
  words[9] = 0;
  EXPECT_EQ(bitmap.MarkWord(words.get(), 0, 1), Mark::kFirst);
  EXPECT_TRUE(bitmap.HasMarks(kWords));
  words[0] = 0;
  EXPECT_TRUE(bitmap.HasMarks(kWords)) << "the thread of a drain is gone";
}

TEST(RemoteBitmap, ARepairNamesAllWordsWithMarksAndGivesTheToken) {
  auto words = std::make_unique<std::atomic<uint64_t>[]>(kWords);
  RemoteBitmap bitmap(words.get());
  EXPECT_FALSE(bitmap.RepairAfterFork(kWords));
  ASSERT_EQ(bitmap.MarkWord(words.get(), 3, 1), Mark::kFirst);
  // As if the thread that got the token were gone with it, and another between the two
  // halves of MarkWord().
  words[9] = 6;
  EXPECT_TRUE(bitmap.RepairAfterFork(kWords));
  EXPECT_EQ(bitmap.MarkWord(words.get(), 9, 8), Mark::kAdded);
  EXPECT_EQ(bitmap.MarkWord(words.get(), 20, 1), Mark::kAdded);
  EXPECT_EQ(DrainAsSet(bitmap),
            (std::set<size_t>{3 * 64, 9 * 64 + 1, 9 * 64 + 2, 9 * 64 + 3, 20 * 64}));
  EXPECT_FALSE(bitmap.RepairAfterFork(kWords));
  // As if a drain had cleared the summary, and not yet the word.
  words[9] = 6;
  EXPECT_TRUE(bitmap.RepairAfterFork(kWords));
  EXPECT_EQ(DrainAsSet(bitmap), (std::set<size_t>{9 * 64 + 1, 9 * 64 + 2}));
}

// Threads mark blocks, each its own but in words that all share, as soon as they
// were drained, while the holder of the token drains. There is never more than
// one token, and when no thread marks any more and no token is left, then every
// mark was drained. Marks are in all words, so that a drain takes long enough
// for others to come in between.
TEST(RemoteBitmap, NoMarkIsLostWhileThreadsRace) {
  constexpr size_t kThreads = 2;
  constexpr size_t kMarksEach = 800000;
  Bitmap bitmap;
  std::atomic<size_t> tokens{0};
  std::atomic<size_t> done{0};
  std::atomic<bool> is_in_use[kMaxBlocks];
  size_t content[kMaxBlocks] = {};  // Not atomic: marks and drains order it.
  for (std::atomic<bool>& in_use : is_in_use) in_use = true;

  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      size_t marks = 0;
      size_t skipped = 0;
      // Gives up when nothing is drained any more.
      for (size_t i = 0; marks < kMarksEach && skipped < 10000 * kWords; ++i) {
        const size_t block = i % kWords * 64 + thread;
        if (!is_in_use[block].load(std::memory_order_acquire)) {
          if (++skipped % kWords == 0) std::this_thread::yield();
          continue;
        }
        skipped = 0;
        is_in_use[block].store(false, std::memory_order_relaxed);
        content[block] = ++marks;
        const Mark mark = bitmap.MarkFreed(block);
        EXPECT_NE(mark, Mark::kAlreadyFree);
        if (mark == Mark::kFirst) {
          EXPECT_EQ(tokens.fetch_add(1, std::memory_order_acq_rel), 0u);
        }
      }
      done.fetch_add(1, std::memory_order_release);
    });
  }
  bool all_done;
  do {
    all_done = done.load(std::memory_order_acquire) == kThreads;
    if (tokens.load(std::memory_order_acquire) == 0) {
      std::this_thread::yield();
      continue;
    }
    tokens.fetch_sub(1, std::memory_order_acq_rel);
    bitmap.Drain([&](size_t index, uint64_t word) {
      EXPECT_NE(word, 0u);
      ForEachBlock(index, word, [&](size_t block) {
        EXPECT_NE(content[block], 0u);
        content[block] = 0;
        is_in_use[block].store(true, std::memory_order_release);
      });
    });
  } while (!all_done);
  for (std::thread& thread : threads) thread.join();
  size_t lost = 0;
  for (std::atomic<bool>& in_use : is_in_use) lost += !in_use;
  EXPECT_EQ(lost, 0u);
  EXPECT_TRUE(bitmap.IsEmpty());
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
