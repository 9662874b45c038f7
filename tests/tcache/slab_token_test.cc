#include "tcache/slab_token.h"

#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/tcache/blocks.h"
#include "tests/tcache/mark_freed.h"

namespace quarry {
namespace {

using Mark = RemoteBitmap::Mark;

// Every thread shall look for orphans in the same place.
const bool one_arena = (settings.arenas_max = 1, true);

// A class of which nothing else in the process has blocks.
constexpr size_t kBytes = 112;

// The marks of an orphan whose token is on its way wait for it, whoever owns
// the slab when it arrives.
class OrphanWithAToken : public testing::Test {
 protected:
  OrphanWithAToken() {
    owner_.Do([this] {
      for (void*& p : blocks_) p = Allocate(kBytes);
      owner_cache_ = thread_state.cache;
    });
    slab_ = Slab::Of(blocks_[0]);
    EXPECT_EQ(MarkFreed(slab_, slab_->IndexOf(blocks_[0])),
              Mark::kFirst);
    owner_.End();
    EXPECT_TRUE(IsOrphan(slab_));
    EXPECT_EQ(slab_->used(), 2u) << "undrained";
  }
  ~OrphanWithAToken() override {
    VerifyAll();
    ThreadCache::FlushThread();
    EXPECT_EQ(CountOrphans(), 0u);
    EXPECT_EQ(SlabBytesInUse(), 0u) << "a slab is lost";
  }

  Worker owner_;
  void* blocks_[2];
  ThreadCache* owner_cache_;
  Slab* slab_;
};

TEST_F(OrphanWithAToken, IsDrainedWhenTheTokenArrives) {
  PassToken(slab_);
  EXPECT_EQ(slab_->used(), 1u);
  EXPECT_TRUE(IsOrphan(slab_));
  Free(blocks_[1]);
}

TEST_F(OrphanWithAToken, OtherFreesLeaveTheDrainToTheToken) {
  Free(blocks_[1]);
  EXPECT_TRUE(IsOrphan(slab_)) << "the token's holder is about to touch it";
  EXPECT_EQ(slab_->used(), 2u);
  PassToken(slab_);
}

TEST_F(OrphanWithAToken, AdoptionLeavesTheMarksAndTheAdopterGetsTheToken) {
  Worker adopter;
  void* p;
  adopter.Do([&] {
    p = Allocate(kBytes);
    EXPECT_EQ(OwnerOf(p), thread_state.cache);
    EXPECT_EQ(Slab::Of(p), slab_);
    EXPECT_TRUE(slab_->remote.IsMarked(slab_->IndexOf(blocks_[0])));
    ThreadCache::FlushThread();
    EXPECT_TRUE(slab_->remote.IsMarked(slab_->IndexOf(blocks_[0])));
    EXPECT_EQ(slab_->used(), 3u);
  });
  PassToken(slab_);
  EXPECT_TRUE(slab_->remote.IsMarked(slab_->IndexOf(blocks_[0])));
  adopter.Do([&] {
    EXPECT_FALSE(thread_state.cache->pending().IsEmpty());
    ThreadCache::FlushThread();
    EXPECT_EQ(slab_->used(), 2u);
    EXPECT_TRUE(slab_->remote.IsEmpty());
    Free(p);
    Free(blocks_[1]);
  });
}

TEST_F(OrphanWithAToken, MayBeAnOrphanAgainWhenTheTokenArrives) {
  OnAnotherThread([&] {
    void* const p = Allocate(kBytes);
    EXPECT_EQ(Slab::Of(p), slab_);
    Free(p);
  });
  EXPECT_TRUE(IsOrphan(slab_));
  PassToken(slab_);
  EXPECT_EQ(slab_->used(), 1u);
  Free(blocks_[1]);
}

TEST_F(OrphanWithAToken, TheStackOfTheExitedThreadRefusesIt) {
  // What a thread does that read the owner before the owner exited.
  EXPECT_FALSE(owner_cache_->pending().Push(slab_));
  PassToken(slab_);
  Free(blocks_[1]);
}

TEST_F(OrphanWithAToken, AThreadThatReusesTheCachePassesTheTokenOn) {
  Worker reuser;
  reuser.Do([&] {
    Free(Allocate(16));
    ASSERT_EQ(thread_state.cache, owner_cache_);
  });
  ASSERT_TRUE(owner_cache_->pending().Push(slab_));
  reuser.Do([&] { ThreadCache::FlushThread(); });
  EXPECT_EQ(slab_->used(), 1u) << "drained as an orphan";
  EXPECT_TRUE(IsOrphan(slab_));
  Free(blocks_[1]);
}

TEST_F(OrphanWithAToken, AThreadThatReusesTheCachePassesTheTokenToTheAdopter) {
  Worker reuser;
  Worker adopter;
  reuser.Do([&] {
    Free(Allocate(16));
    ASSERT_EQ(thread_state.cache, owner_cache_);
  });
  void* p;
  adopter.Do([&] {
    p = Allocate(kBytes);
    ASSERT_EQ(Slab::Of(p), slab_);
  });
  ASSERT_TRUE(owner_cache_->pending().Push(slab_));
  // A refill, this time.
  reuser.Do([&] { Free(Allocate(2000)); });
  EXPECT_TRUE(slab_->remote.IsMarked(slab_->IndexOf(blocks_[0])));
  adopter.Do([&] {
    EXPECT_FALSE(thread_state.cache->pending().IsEmpty());
    ThreadCache::FlushThread();
    EXPECT_EQ(slab_->used(), 2u);
    Free(p);
    Free(blocks_[1]);
  });
}

TEST_F(OrphanWithAToken, AThreadThatReusesTheCachePassesTheTokenOnWhenItExits) {
  Worker reuser;
  reuser.Do([&] {
    Free(Allocate(16));
    ASSERT_EQ(thread_state.cache, owner_cache_);
  });
  ASSERT_TRUE(owner_cache_->pending().Push(slab_));
  reuser.End();
  EXPECT_EQ(slab_->used(), 1u);
  EXPECT_TRUE(IsOrphan(slab_));
  Free(blocks_[1]);
}

// The cache that reuses the memory of the slab's former owner may also be the
// one that adopts the slab.
TEST_F(OrphanWithAToken, AThreadThatReusesTheCacheMayAdoptTheSlab) {
  Worker reuser;
  void* p;
  reuser.Do([&] {
    p = Allocate(kBytes);
    ASSERT_EQ(thread_state.cache, owner_cache_);
    ASSERT_EQ(Slab::Of(p), slab_);
  });
  ASSERT_TRUE(owner_cache_->pending().Push(slab_));
  reuser.Do([&] {
    ThreadCache::FlushThread();
    EXPECT_EQ(slab_->used(), 2u);
    Free(p);
    Free(blocks_[1]);
  });
}

// The child of a fork has no thread that would pass the token.
TEST_F(OrphanWithAToken, DrainAllNeedsNoToken) {
  OrphansOf(0).DrainAll();
  EXPECT_EQ(slab_->used(), 1u);
  EXPECT_TRUE(IsOrphan(slab_));
  EXPECT_EQ(MarkFreed(slab_, slab_->IndexOf(blocks_[1])), Mark::kFirst);
  OrphansOf(0).DrainAll();
  EXPECT_EQ(CountOrphans(), 0u);
}

}  // namespace
}  // namespace quarry
