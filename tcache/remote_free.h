// Freeing a block whose slab another thread owns.
#ifndef QUARRY_TCACHE_REMOTE_FREE_H_
#define QUARRY_TCACHE_REMOTE_FREE_H_

#include <cstddef>
#include <cstdint>

#include "absl/base/optimization.h"
#include "tcache/slab.h"

namespace quarry {

// Marks `p` as free in its slab's remote bitmap and, if that gave this thread
// the token, passes it to the owner.
//
// Thread-safety: any thread that does not own `slab`.
// Errors: aborts if p is not the start of a block, or is marked already.
void FreeRemotely(Slab* slab, void* p);

// The same for a block of a fast class in the page map's home window, whose tag
// there is `tag`. Returns whether the owner was told, which may have been work for
// the maintenance thread.
bool FreeFastRemotely(void* p, Tag tag);

// How many calls of FreeRemotely() threads without a cache have made; those of
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
