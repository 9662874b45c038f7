#include "tcache/slab_pass.h"

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "arena/page_source.h"
#include "gtest/gtest.h"
#include "tests/tcache/test_slab.h"

namespace quarry {
namespace {

using State = SlabPass::State;

// Slabs of pages, in one list of their class; the other classes have none.
class SlabPassTest : public testing::Test {
 protected:
  // One with a free page that has been used.
  void Add() {
    slabs_.push_back(std::make_unique<TestSlab>(class_));
    TestSlab& slab = *slabs_.back();
    std::vector<char*> blocks = slab.TakeAll();
    memset(blocks[0], 0x55, PageBytes());
    ASSERT_TRUE(slab->PutBlock(slab->IndexOf(blocks[0])));
    first_blocks_.push_back(blocks[0]);
    list_.PushFront(&*slab);
  }

  State Step(uint8_t looks) {
    gave_back_ = false;
    return pass_.Step(looks, &gave_back_, [this](SizeClass c) {
      return std::array{c == class_ ? &list_ : &none_};
    });
  }

  size_t Purged() const {
    size_t count = 0;
    for (const char* block : first_blocks_) count += block[0] == 0;
    return count;
  }

  const SizeClass class_ = ClassOf(PageBytes());
  std::vector<std::unique_ptr<TestSlab>> slabs_;
  std::vector<char*> first_blocks_;
  SlabList list_;
  SlabList none_;
  SlabPass pass_;
  bool gave_back_ = false;
};

TEST_F(SlabPassTest, OfNothingIsDone) {
  EXPECT_EQ(Step(0), State::kAllAreDone);
  EXPECT_FALSE(gave_back_);
}

TEST_F(SlabPassTest, LooksAtEachSlabOnceAndGivesIdlePagesBack) {
  for (int i = 0; i < 3; ++i) Add();
  for (int i = 0; i < SlabPass::kIdleLooks; ++i) {
    EXPECT_EQ(Step(SlabPass::kIdleLooks), State::kSomeAreYoung);
    EXPECT_FALSE(gave_back_);
    EXPECT_EQ(Purged(), 0u);
  }
  EXPECT_EQ(Step(SlabPass::kIdleLooks), State::kAllAreDone);
  EXPECT_TRUE(gave_back_);
  EXPECT_EQ(Purged(), 3u);
  EXPECT_EQ(Step(SlabPass::kIdleLooks), State::kAllAreDone);
  EXPECT_FALSE(gave_back_) << "once";
}

TEST_F(SlabPassTest, AStepIsBoundedAndTheNextGoesOn) {
  const size_t count = 2 * SlabPass::kMostPurges + 5;
  for (size_t i = 0; i < count; ++i) Add();
  EXPECT_EQ(Step(0), State::kGoesOn);
  EXPECT_EQ(Purged(), SlabPass::kMostPurges);
  EXPECT_EQ(Step(0), State::kGoesOn);
  EXPECT_EQ(Purged(), 2 * SlabPass::kMostPurges);
  EXPECT_EQ(Step(0), State::kAllAreDone);
  EXPECT_EQ(Purged(), count);
}

TEST_F(SlabPassTest, WhatMovesDuringAPassHidesNothing) {
  const size_t count = SlabPass::kMostPurges + 5;
  for (size_t i = 0; i < count; ++i) Add();
  EXPECT_EQ(Step(0), State::kGoesOn);
  // One that has been looked at comes to the front, as if it were new.
  Slab* looked_at = list_.first();
  while (looked_at->next != nullptr) looked_at = looked_at->next;
  list_.Remove(looked_at);
  looked_at->ForgetPass();
  list_.PushFront(looked_at);
  EXPECT_EQ(Step(0), State::kAllAreDone);
  EXPECT_EQ(Purged(), count);
}

// What has changed behind a pass that goes on is left to the next.
TEST_F(SlabPassTest, APassThatGoesOnCanBeToldToLookAgain) {
  pass_.LookAgain();
  EXPECT_EQ(Step(0), State::kAllAreDone) << "it had not begun";
  for (size_t i = 0; i <= SlabPass::kMostPurges; ++i) Add();
  EXPECT_EQ(Step(0), State::kGoesOn);
  pass_.LookAgain();
  EXPECT_EQ(Step(0), State::kSomeAreYoung);
  EXPECT_EQ(Step(0), State::kAllAreDone);
}

TEST_F(SlabPassTest, APassCanBeginAnew) {
  const size_t count = SlabPass::kMostLooks + 5;
  for (size_t i = 0; i < count; ++i) Add();
  // All are young, but the step ends before the pass.
  EXPECT_EQ(Step(SlabPass::kIdleLooks), State::kGoesOn);
  pass_.Restart();
  State state;
  while ((state = Step(0)) == State::kGoesOn) {
  }
  EXPECT_EQ(state, State::kAllAreDone);
  EXPECT_EQ(Purged(), count);
}

// The numbers of passes begin again; and what is free as it was may have been
// used meanwhile.
TEST_F(SlabPassTest, EveryPassLooksAtEverything) {
  Add();
  TestSlab& slab = *slabs_[0];
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(Step(0), State::kAllAreDone);
    EXPECT_EQ(Purged(), 1u);
    EXPECT_EQ(Step(0), State::kAllAreDone);
    EXPECT_FALSE(gave_back_);
    ASSERT_EQ(slab.Take(1), std::vector<char*>{first_blocks_[0]});
    memset(first_blocks_[0], 0x55, PageBytes());
    ASSERT_TRUE(slab->PutBlock(0));
  }
}

}  // namespace
}  // namespace quarry
