#include "tcache/remote_free.h"

#include <atomic>
#include <bit>

#include "absl/base/optimization.h"
#include "arena/errno_saver.h"
#include "arena/page_map.h"
#include "arena/report.h"
#include "tcache/orphans.h"
#include "tcache/remote_batch.h"
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

void CountRemoteFrees(uint64_t count) {
  ThreadCache* cache = thread_state.cache;
  if (ABSL_PREDICT_FALSE(cache == &no_cache)) {
    remote_frees_without_cache.fetch_add(count, std::memory_order_relaxed);
    return;
  }
  // One writer: no locked instruction.
  cache->remote_frees.store(
      cache->remote_frees.load(std::memory_order_relaxed) + count,
      std::memory_order_relaxed);
}

[[noreturn]] ABSL_ATTRIBUTE_NOINLINE void ReportMarkedTwice(
    const RemoteBatch::Word& word) {
  size_t block = word.index * 64;
  for (uint64_t bits = word.bits; bits != 0; bits &= bits - 1) {
    block = word.index * 64 + static_cast<size_t>(std::countr_zero(bits));
    if (word.slab->remote.IsMarked(block)) break;
  }
  ReportDoubleFree(word.slab->BlockAt(block), word.slab->block_bytes(),
                   word.slab->start());
}

// Returns whether the owner was told.
ABSL_ATTRIBUTE_NOINLINE bool MarkNow(const RemoteBatch::Word& word) {
  CountRemoteFrees(static_cast<uint64_t>(std::popcount(word.bits)));
  std::atomic<uint64_t>* const words =
      Slab::RemoteWords(word.slab, Slab::kGeometry[word.size_class]);
  const RemoteBitmap::Mark mark =
      word.slab->remote.MarkWord(words, word.index, word.bits);
  if (ABSL_PREDICT_TRUE(mark == RemoteBitmap::Mark::kAdded)) return false;
  if (ABSL_PREDICT_FALSE(mark == RemoteBitmap::Mark::kAlreadyFree)) {
    ReportMarkedTwice(word);
  }
  PassToken(word.slab);
  return true;
}

// What was held for a while.
bool MarkHeld(const RemoteBatch::Word& word) {
  Tag tag = kNoTag;
  (void)PageMap::HomeTagOf(word.block, &tag);  // It was when the block was freed.
  // A slab that was given back after the first of two frees of its last block.
  if (ABSL_PREDICT_FALSE(ClassOfTag(tag) != word.size_class ||
                         PageMap::HomeDescriptorOf(word.block) != word.slab)) {
    ReportForeignPointer("free", word.block);
  }
  return MarkNow(word);
}

bool MarkBlock(Slab* slab, const void* p, size_t block, SizeClass size_class) {
  return MarkNow({slab, uint64_t{1} << (block % 64), p,
                  static_cast<uint32_t>(block / 64), size_class});
}

// A thread that only frees has no cache to keep a batch in. It gets one when it
// turns out to free many blocks; nullptr until then.
ABSL_ATTRIBUTE_NOINLINE ThreadCache* CacheOfFreeingThread() {
  constexpr uint16_t kFewFrees = 64;
  if (++thread_state.remote_frees < kFewFrees) return nullptr;
  thread_state.remote_frees = 0;
  ErrnoSaver saver;
  return MakeCurrentCache();
}

}  // namespace

uint64_t RemoteFreesWithoutCache() {
  return remote_frees_without_cache.load(std::memory_order_relaxed);
}

void FreeRemotely(Slab* slab, void* p) {
  CheckIsBlock("free", slab, p);
  MarkBlock(slab, p, slab->IndexOf(p), slab->size_class());
}

bool FreeFastRemotely(void* p, Tag tag, bool may_make_cache) {
  const SizeClass size_class = ClassOfTag(tag);
  const size_t block = Slab::FastIndexOf(p, size_class);
  auto* const slab = static_cast<Slab*>(PageMap::HomeDescriptorOf(p));
  if (ABSL_PREDICT_FALSE(!Slab::kGeometry[size_class].HasBlock(block, p))) {
    ReportNoBlock("free", slab, p);
  }
  ThreadCache* cache = thread_state.cache;
  if (ABSL_PREDICT_FALSE(cache == &no_cache)) {
    if (may_make_cache) cache = CacheOfFreeingThread();
    if (cache == &no_cache || cache == nullptr) {
      return MarkBlock(slab, p, block, size_class);
    }
  }
  RemoteBatch& batch = cache->remote_batch();
  RemoteBatch::Word displaced;
  if (ABSL_PREDICT_FALSE(
          !batch.Add(slab, p, block, size_class, tag, &displaced))) {
    ReportDoubleFree(p, slab->block_bytes(), slab->start());
  }
  bool owner_was_told = displaced.bits != 0 && MarkHeld(displaced);
  if (ABSL_PREDICT_FALSE(batch.IsFull())) {
    owner_was_told |= FlushRemoteFrees(cache);
  }
  return owner_was_told;
}

bool FlushRemoteFrees(ThreadCache* cache) {
  bool owner_was_told = false;
  cache->remote_batch().Empty([&](const RemoteBatch::Word& word) {
    owner_was_told |= MarkHeld(word);
  });
  return owner_was_told;
}

}  // namespace quarry
