// Where the token of a slab goes: the duty to tell the slab's owner that it has remote
// frees, which the thread has that marked the first of them (RemoteBitmap).
//
// The owner may exit meanwhile, and its slab be an orphan or another cache's; its cache may
// be closed, or be another thread's. The token finds the slab's owner all the same, or the
// thread that has it takes in the frees of an orphan itself.
//
// Thread-safety: any thread that has the token and holds no lock that ranks as high as
//   the orphans', or higher.
// Ordering: see Orphans::Adopt() and PendingStack.
#ifndef QUARRY_TCACHE_SLAB_TOKEN_H_
#define QUARRY_TCACHE_SLAB_TOKEN_H_

#include "tcache/slab.h"

namespace quarry {

// Sees to it that the owner of `slab`, whose token the caller holds, learns of
// its remote frees; or, if it has none, drains it.
void PassToken(Slab* slab);

}  // namespace quarry

#endif  // QUARRY_TCACHE_SLAB_TOKEN_H_
