#include "tcache/remote_free.h"

#include <atomic>

#include "absl/base/optimization.h"
#include "arena/page_map.h"
#include "arena/report.h"
#include "tcache/orphans.h"
#include "tcache/thread_cache.h"

namespace quarry {

void ReportNoBlock(const char* call, const Slab* slab, const void* p) {
  const size_t index = slab->IndexOf(p);
  if (index >= slab->blocks()) ReportForeignPointer(call, p);
  ReportInteriorPointer(call, p, slab->BlockAt(index), slab->block_bytes());
}

namespace {

// Of threads that have no cache.
constinit std::atomic<uint64_t> remote_frees_without_cache{0};

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void CountRemoteFree() {
  ThreadCache* cache = thread_state.cache;
  if (ABSL_PREDICT_FALSE(cache == &no_cache)) {
    remote_frees_without_cache.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  // One writer: no locked instruction.
  cache->remote_frees.store(
      cache->remote_frees.load(std::memory_order_relaxed) + 1,
      std::memory_order_relaxed);
}

[[noreturn]] ABSL_ATTRIBUTE_NOINLINE void ReportMarkedTwice(Slab* slab,
                                                           void* p) {
  ReportDoubleFree(p, slab->block_bytes(), slab->start());
}

ABSL_ATTRIBUTE_NOINLINE bool TellOwner(Slab* slab) {
  PassToken(slab);
  return true;
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool Finish(Slab* slab, void* p,
                                                RemoteBitmap::Mark mark) {
  if (ABSL_PREDICT_TRUE(mark == RemoteBitmap::Mark::kAdded)) return false;
  if (ABSL_PREDICT_FALSE(mark == RemoteBitmap::Mark::kAlreadyFree)) {
    ReportMarkedTwice(slab, p);
  }
  return TellOwner(slab);
}

}  // namespace

uint64_t RemoteFreesWithoutCache() {
  return remote_frees_without_cache.load(std::memory_order_relaxed);
}

void FreeRemotely(Slab* slab, void* p) {
  CheckIsBlock("free", slab, p);
  CountRemoteFree();
  Finish(slab, p, slab->remote.MarkFreed(slab->IndexOf(p)));
}

bool FreeFastRemotely(void* p, Tag tag) {
  const SizeClass size_class = tag % kOwnerUnit / sizeof(Magazine);
  const SlabGeometry& geometry = Slab::kGeometry[size_class];
  const size_t index = Slab::FastIndexOf(p, size_class);
  auto* const slab = static_cast<Slab*>(PageMap::HomeDescriptorOf(p));
  if (ABSL_PREDICT_FALSE(index * geometry.block_bytes !=
                             reinterpret_cast<uintptr_t>(p) % kGranuleBytes ||
                         index >= geometry.blocks)) {
    ReportNoBlock("free", slab, p);
  }
  CountRemoteFree();
  std::atomic<uint64_t>* const words = Slab::RemoteWords(slab, geometry);
  return Finish(slab, p, slab->remote.MarkFreed(words, index));
}

}  // namespace quarry
