#include "arena/run_bins.h"

#include <algorithm>
#include <csignal>
#include <deque>
#include <random>
#include <set>
#include <vector>

#include "arena/run.h"
#include "gtest/gtest.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

// Inside a fixture, Run is a member of testing::Test.
using PageRun = Run;

constexpr size_t kGranule = 65536;

// Runs at made-up addresses: the bins never look into the pages.
class RunBinsTest : public testing::Test {
 protected:
  PageRun* MakeRun(uint32_t pages, uintptr_t first_page = 1) {
    PageRun& run = runs_.emplace_back();
    run.start = reinterpret_cast<char*>(first_page * PageBytes());
    run.pages = pages;
    return &run;
  }

  PageRun* Add(uint32_t pages, uintptr_t first_page = 1) {
    PageRun* const run = MakeRun(pages, first_page);
    bins_.Insert(run);
    return run;
  }

  void Verify(size_t runs, size_t pages) {
    size_t counted_runs, counted_pages;
    bins_.Verify(&counted_runs, &counted_pages);
    EXPECT_EQ(counted_runs, runs);
    EXPECT_EQ(counted_pages, pages);
  }

  std::deque<PageRun> runs_;
  RunBins bins_;
};

using RunBinsDeathTest = RunBinsTest;

TEST_F(RunBinsTest, EmptyHasNoFit) {
  EXPECT_EQ(bins_.BestFit(1), nullptr);
  EXPECT_EQ(bins_.BestFit(33), nullptr);
  EXPECT_EQ(bins_.BestFit(1u << 30), nullptr);
  EXPECT_EQ(bins_.BestAlignedFit(16, kGranule), nullptr);
  Verify(0, 0);
}

TEST_F(RunBinsTest, TreeBinsAreTwoToAPowerOfTwo) {
  EXPECT_EQ(RunBins::TreeBinOf(33), 0u);
  EXPECT_EQ(RunBins::TreeBinOf(47), 0u);
  EXPECT_EQ(RunBins::TreeBinOf(48), 1u);
  EXPECT_EQ(RunBins::TreeBinOf(63), 1u);
  EXPECT_EQ(RunBins::TreeBinOf(64), 2u);
  EXPECT_EQ(RunBins::TreeBinOf(95), 2u);
  EXPECT_EQ(RunBins::TreeBinOf(96), 3u);
  EXPECT_EQ(RunBins::TreeBinOf(3u << 19), 31u);
  EXPECT_EQ(RunBins::TreeBinOf((3u << 19) - 1), 30u);
  EXPECT_EQ(RunBins::TreeBinOf(~0u), 31u);
  for (uint32_t pages = 34; pages < 100000; ++pages) {
    ASSERT_LE(RunBins::TreeBinOf(pages - 1), RunBins::TreeBinOf(pages));
  }
}

TEST_F(RunBinsTest, EverySizeIsFoundByEveryRequestUpToIt) {
  const std::vector<uint32_t> sizes = {
      1,  2,  31,  32,  33,   47,   48,      64,      65,
      95, 96, 127, 128, 1000, 4095, 1 << 20, 3 << 19, 5 << 20};
  for (uint32_t size : sizes) {
    PageRun* const run = Add(size);
    for (uint32_t request : sizes) {
      EXPECT_EQ(bins_.BestFit(request), request <= size ? run : nullptr);
    }
    Verify(1, size);
    bins_.Remove(run);
  }
  Verify(0, 0);
}

TEST_F(RunBinsTest, TakesTheSmallestThatFits) {
  PageRun* const of_3 = Add(3);
  PageRun* const of_9 = Add(9);
  PageRun* const of_40 = Add(40);
  PageRun* const of_41 = Add(41);
  PageRun* const of_500 = Add(500);
  EXPECT_EQ(bins_.BestFit(1), of_3);
  EXPECT_EQ(bins_.BestFit(4), of_9);
  EXPECT_EQ(bins_.BestFit(10), of_40);
  EXPECT_EQ(bins_.BestFit(33), of_40);
  EXPECT_EQ(bins_.BestFit(41), of_41);
  EXPECT_EQ(bins_.BestFit(42), of_500);
  EXPECT_EQ(bins_.BestFit(501), nullptr);
}

TEST_F(RunBinsTest, TheLowestOfAnUndisturbedBinComesFirst) {
  for (uint32_t pages : {5u, 200u}) {
    Add(pages, 70);
    PageRun* const low = Add(pages, 10);
    Add(pages, 90);
    EXPECT_EQ(bins_.BestFit(pages), low);
  }
}

TEST_F(RunBinsTest, AnAlignedHoleServesBeforeALargerRun) {
  const uint32_t granule_pages = static_cast<uint32_t>(kGranule / PageBytes());
  const size_t crooked = 3 * granule_pages + 1;
  const size_t straight = 5 * granule_pages;
  Add(granule_pages, crooked);
  PageRun* const hole = Add(granule_pages, straight);
  Add(40 * granule_pages, 100 * granule_pages);
  EXPECT_EQ(bins_.BestAlignedFit(granule_pages, kGranule), hole);
  EXPECT_EQ(AlignedPlace(hole, granule_pages, kGranule), hole->start);
}

TEST_F(RunBinsTest, ACrookedRunServesIfItIsLargeEnough) {
  const uint32_t granule_pages = static_cast<uint32_t>(kGranule / PageBytes());
  if (granule_pages == 1) GTEST_SKIP() << "every run is aligned";
  Add(granule_pages, granule_pages + 1);
  EXPECT_EQ(bins_.BestAlignedFit(granule_pages, kGranule), nullptr);
  PageRun* const run = Add(2 * granule_pages - 1, granule_pages + 1);
  EXPECT_EQ(bins_.BestAlignedFit(granule_pages, kGranule), run);
  EXPECT_EQ(AlignedPlace(run, granule_pages, kGranule),
            reinterpret_cast<char*>(2 * kGranule));
}

// Every operation against a sorted set of the same runs.
TEST_F(RunBinsTest, AgreesWithASortedSet) {
  std::mt19937_64 random(TestSeed());
  std::multiset<uint32_t> model;
  std::vector<PageRun*> in, out;
  for (int i = 0; i < 1500; ++i) out.push_back(MakeRun(1));
  size_t pages = 0;
  const auto random_size = [&]() -> uint32_t {
    switch (random() % 5) {
      case 0:
        return 1 + random() % 40;
      case 1:
        return 1 + random() % 300;
      case 2:
        return 1 + random() % 3000;
      case 3:
        return 1u << (random() % 26);
      default:
        return 1 + (random() >> (38 + random() % 26));
    }
  };
  for (int step = 0; step < 200000; ++step) {
    // Waves, so that the bins are at times full and at times empty.
    const bool filling = (step / 5000) % 2 == 0;
    const bool insert =
        in.empty() || (!out.empty() && random() % 10 < (filling ? 7u : 3u));
    if (insert) {
      const size_t i = random() % out.size();
      std::swap(out[i], out.back());
      PageRun* const run = out.back();
      out.pop_back();
      run->pages = random_size();
      run->start = reinterpret_cast<char*>((1 + random() % 5000) * PageBytes());
      bins_.Insert(run);
      in.push_back(run);
      model.insert(run->pages);
      pages += run->pages;
    } else {
      const size_t i = random() % in.size();
      std::swap(in[i], in.back());
      PageRun* const run = in.back();
      in.pop_back();
      bins_.Remove(run);
      out.push_back(run);
      model.erase(model.find(run->pages));
      pages -= run->pages;
    }
    const uint32_t request = random_size();
    const PageRun* const found = bins_.BestFit(request);
    const auto expected = model.lower_bound(request);
    ASSERT_EQ(found == nullptr, expected == model.end());
    if (found != nullptr) {
      ASSERT_EQ(found->pages, *expected);
    }

    const size_t alignment = PageBytes() << random() % 6;
    const PageRun* const aligned = bins_.BestAlignedFit(request, alignment);
    const auto sure = model.lower_bound(
        request + static_cast<uint32_t>(alignment / PageBytes()) - 1);
    if (sure != model.end()) {
      ASSERT_NE(aligned, nullptr);
      ASSERT_LE(aligned->pages, *sure);
    }
    if (aligned != nullptr) {
      const char* const place = AlignedPlace(aligned, request, alignment);
      ASSERT_NE(place, nullptr);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(place) % alignment, 0u);
      ASSERT_LE(place + request * PageBytes(), aligned->end());
    }
    if (step % 1000 == 0) Verify(model.size(), pages);
  }
}

TEST_F(RunBinsDeathTest, VerifyFindsARunInTheWrongPlace) {
  for (uint32_t pages : {5u, 100u}) {
    PageRun* const run = Add(pages);
    run->pages += 50;
    EXPECT_EXIT(Verify(1, pages), testing::KilledBySignal(SIGABRT),
                "check failed");
    run->pages -= 50;
    bins_.Remove(run);
  }
}

}  // namespace
}  // namespace quarry
