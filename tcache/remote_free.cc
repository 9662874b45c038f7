#include "tcache/remote_free.h"

#include <atomic>
#include <bit>

#include "absl/base/optimization.h"
#include "arena/errno_saver.h"
#include "arena/page_map.h"
#include "arena/report.h"
#include "tcache/remote_batch.h"
#include "tcache/slab_token.h"
#include "tcache/thread_cache.h"
#include "tcache/thread_life.h"

namespace quarry {

void ReportNoBlock(const char* call, const Slab* slab, const void* p) {
  const size_t index = slab->IndexOf(p);
  if (index >= slab->blocks()) ReportForeignPointer(call, p);
  ReportInteriorPointer(call, p, slab->BlockAt(index), slab->block_bytes());
}

namespace {

// Of threads that have no cache.
constinit std::atomic<uint64_t> remote_frees_without_cache{0};

[[noreturn]] ABSL_ATTRIBUTE_NOINLINE void ReportMarkedTwice(
    const Slab* slab, size_t index, uint64_t bits) {
  size_t block = index * 64;
  for (; bits != 0; bits &= bits - 1) {
    block = index * 64 + static_cast<size_t>(std::countr_zero(bits));
    if (slab->remote.IsMarked(block)) break;
  }
  ReportDoubleFree(slab->BlockAt(block), slab->block_bytes(), slab->start());
}

// Returns whether the owner was told.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool Mark(Slab* slab, SizeClass size_class,
                                              size_t index, uint64_t bits) {
  std::atomic<uint64_t>* const words =
      Slab::RemoteWords(slab, Slab::kGeometry[size_class]);
  const RemoteBitmap::Mark mark = slab->remote.MarkWord(words, index, bits);
  if (ABSL_PREDICT_TRUE(mark == RemoteBitmap::Mark::kAdded)) return false;
  if (ABSL_PREDICT_FALSE(mark == RemoteBitmap::Mark::kAlreadyFree)) {
    ReportMarkedTwice(slab, index, bits);
  }
  PassToken(slab);
  return true;
}

void CountRemoteFree() {
  ThreadCache* const cache = thread_state.cache;
  if (ABSL_PREDICT_FALSE(cache == &no_cache)) {
    remote_frees_without_cache.fetch_add(1, std::memory_order_relaxed);
  } else {
    cache->remote_batch().CountFree();
  }
}

// A thread that only frees has no cache to keep a batch in. It gets one when it
// turns out to free many blocks; nullptr until then.
ThreadCache* CacheOfFreeingThread() {
  constexpr uint16_t kFewFrees = 64;
  if (++thread_state.remote_frees < kFewFrees) return nullptr;
  thread_state.remote_frees = 0;
  ErrnoSaver saver;
  return MakeCurrentCache();
}

// A thread that begins with blocks of one that is gone has most likely taken over what
// that one worked on: with its cache, too, their frees are local, and what was free
// beside them is used next. Returns whether the thread has it now.
bool TakeOverCacheOf(const Slab* slab) {
  // First, since the owner writes to the line that tells whether it is parked.
  if (thread_state.exited) return false;
  // Relaxed: what counts is what the registry finds.
  ThreadCache* const owner = slab->owner.load(std::memory_order_relaxed);
  if (owner == nullptr || !owner->is_parked()) return false;
  ErrnoSaver saver;
  return TakeCacheOver(owner) != nullptr;
}

}  // namespace

uint64_t RemoteFreesWithoutCache() {
  return remote_frees_without_cache.load(std::memory_order_relaxed);
}

bool MarkHeld(BlockWord word) {
  const Tag tag = PageMap::SureHomeTagOf(word.slab_start());
  // A slab that was given back after the first of two frees of its last block, and
  // is not there again in the same class.
  if (ABSL_PREDICT_FALSE((tag & (kOwnerUnit - 1)) != word.magazine_offset())) {
    ReportForeignPointer("free", word.first_block());
  }
  auto* const slab =
      static_cast<Slab*>(PageMap::HomeDescriptorOf(word.slab_start()));
  return Mark(slab, word.size_class(), word.word(), word.bits);
}

void ReportHeldTwice(const void* p) {
  const Slab* const slab = Slab::Of(p);
  ReportDoubleFree(p, slab->block_bytes(), slab->start());
}

void MarkFree(Slab* slab, void* p) {
  CheckIsBlock("free", slab, p);
  const size_t block = slab->IndexOf(p);
  (void)Mark(slab, slab->size_class(), block / 64, BlockWord::BitOf(block));
}

void FreeRemotely(Slab* slab, void* p) {
  CountRemoteFree();
  MarkFree(slab, p);
}

bool FreeRemotelyWithoutCache(void* p, RemoteBlock block, bool may_make_cache) {
  auto* const slab = static_cast<Slab*>(PageMap::HomeDescriptorOf(p));
  if (may_make_cache) {
    if (TakeOverCacheOf(slab)) {
      ThreadCache::Free(slab, p);
      return true;  // As far as is known here.
    }
    // A thread whose frees are to be seen one by one, as was just decided, gets a
    // cache without a tag.
    if (CacheOfFreeingThread() != nullptr &&
        ABSL_PREDICT_TRUE(thread_state.tag != 0)) {
      return FreeRemotelyLater(p, block);  // Its batch is empty.
    }
  }
  CountRemoteFree();
  return Mark(slab, ClassOfTag(block.tag), block.index / 64, BlockWord::BitOf(block.index));
}

bool FlushRemoteFrees(ThreadCache* cache) {
  bool owner_was_told = false;
  cache->remote_batch().Empty([&](const BlockWord& word) {
    owner_was_told |= MarkHeld(word);
  });
  return owner_was_told;
}

}  // namespace quarry
