// Freeing a block whose slab another thread owns.
#ifndef QUARRY_TCACHE_REMOTE_FREE_H_
#define QUARRY_TCACHE_REMOTE_FREE_H_

#include <cstddef>
#include <cstdint>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "tcache/block_word.h"
#include "tcache/remote_batch.h"
#include "tcache/slab.h"
#include "tcache/thread_cache.h"

namespace quarry {

// Marks `p` as free in its slab's remote bitmap and, if that gave this thread
// the token, passes it to the owner.
//
// Thread-safety: any thread that does not own `slab`.
// Errors: aborts if p is not the start of a block, or is marked already.
void FreeRemotely(Slab* slab, void* p);

// The same of a block that was counted as freed already, since the thread kept it: see
// ThreadCache::TryKeepForeign().
void MarkFree(Slab* slab, void* p);

// A block in the page map's home window is freed in two steps: the thread holds it with
// others of its word (remote_batch.h), and marks them together.
// A second free may be found only then. Those of these functions that return bool say
// whether an owner was told, which may have been work for the maintenance thread.

// Marks what the thread of `cache` holds. The owner thread only, or who holds the
// whole cache after that thread is gone.
bool FlushRemoteFrees(ThreadCache* cache);

// Marks blocks that have left a batch.
bool MarkHeld(BlockWord word);

// Aborts with a report on a block that is in the thread's batch already.
[[noreturn]] void ReportHeldTwice(const void* p);

// Frees `p`, which is `block`, for a thread without a cache: marks it at once. But if the
// thread may have one, it gets the cache that owns the block, where that is parked, and
// the block is freed locally; or another after some calls, and then holds the block.
bool FreeRemotelyWithoutCache(void* p, RemoteBlock block, bool may_make_cache);

// Holds it, for a thread with a cache, after RemoteBatch::TryAddToWord() did not.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool FreeRemotelyLater(void* p,
                                                           RemoteBlock block) {
  ThreadCache* const cache = thread_state.cache;
  RemoteBatch& batch = cache->remote_batch();
  BlockWord displaced{};
  if (ABSL_PREDICT_FALSE(!batch.Add(block, &displaced))) ReportHeldTwice(p);
  bool owner_was_told = displaced.bits != 0 && MarkHeld(displaced);
  if (ABSL_PREDICT_FALSE(batch.IsFull())) {
    owner_was_told |= FlushRemoteFrees(cache);
  }
  return owner_was_told;
}

// How many blocks of other owners threads without a cache have freed; those of
// others are counted in RemoteBatch::frees().
uint64_t RemoteFreesWithoutCache();

[[noreturn]] void ReportNoBlock(const char* call, const Slab* slab,
                                const void* p);

// Aborts unless `p`, which lies in the run of `slab`, is the start of one of
// its blocks. `call` names the misused call in the report.
inline void CheckIsBlock(const char* call, const Slab* slab, const void* p) {
  if (ABSL_PREDICT_FALSE(!slab->IsStart(p))) ReportNoBlock(call, slab, p);
}

}  // namespace quarry

#endif  // QUARRY_TCACHE_REMOTE_FREE_H_
