// Freeing a block whose slab another thread owns.
#ifndef QUARRY_TCACHE_REMOTE_FREE_H_
#define QUARRY_TCACHE_REMOTE_FREE_H_

#include <cstddef>
#include <cstdint>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "arena/page_map.h"
#include "tcache/slab.h"
#include "tcache/thread_cache.h"

namespace quarry {

// Marks `p` as free in its slab's remote bitmap and, if that gave this thread
// the token, passes it to the owner.
//
// Thread-safety: any thread that does not own `slab`.
// Errors: aborts if p is not the start of a block, or is marked already.
void FreeRemotely(Slab* slab, void* p);

// The same for a block of a fast class in the page map's home window, whose tag
// there is `tag`; but a thread that has a cache marks later, with others of the
// word (remote_batch.h), and a second free may be found then. A thread without a
// cache gets one after some calls, if it may be made. Returns whether an owner was
// told, which may have been work for the maintenance thread.
bool FreeFastRemotely(void* p, Tag tag, bool may_make_cache);

// What is common of that: true if the block is held now. Otherwise nothing has
// changed. `tag` is any, but not of a magazine of this thread.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool TryFreeRemotelyLater(void* p, Tag tag) {
  return thread_state.cache->remote_batch().TryAddToWord(
      p, PageMap::HomeDescriptorOf(p), tag);
}

// Marks what the thread of `cache` has freed so and holds yet. The owner thread
// only, or who holds the whole cache after that thread is gone.
bool FlushRemoteFrees(ThreadCache* cache);

// How many blocks of other owners threads without a cache have marked; those of
// others are counted in ThreadCache::remote_frees.
uint64_t RemoteFreesWithoutCache();

[[noreturn]] void ReportNoBlock(const char* call, const Slab* slab,
                                const void* p);

// Aborts unless `p`, which lies in the run of `slab`, is the start of one of
// its blocks. `call` names the misused call in the report.
inline void CheckIsBlock(const char* call, const Slab* slab, const void* p) {
  const size_t index = slab->IndexOf(p);
  if (ABSL_PREDICT_TRUE(slab->BlockAt(index) == p && index < slab->blocks())) {
    return;
  }
  ReportNoBlock(call, slab, p);
}

}  // namespace quarry

#endif  // QUARRY_TCACHE_REMOTE_FREE_H_
