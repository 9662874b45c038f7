#include "tcache/slab_token.h"

#include "arena/maintenance_signal.h"
#include "tcache/orphans.h"
#include "tcache/thread_cache.h"

namespace quarry {

void PassToken(Slab* slab) {
  Orphans& orphans = OrphansOf(slab->arena()->index());
  for (;;) {
    // Acquire: see Adopt().
    ThreadCache* owner = slab->owner.load(std::memory_order_acquire);
    if (owner != nullptr) {
      // The owner may have exited since, and another thread may have its cache.
      // The stack then is closed, or its new owner passes the token on.
      if (owner->pending().Push(slab)) {
        // The owner may be idle, unless it is the caller.
        if (owner != thread_state.cache) maintenance_signal.NoteWork();
        return;
      }
      // Its stack is closed under the orphans' lock, and before that lock is
      // released every slab of the cache is an orphan.
      LockHolder wait(orphans.lock());
    } else if (orphans.DrainOrphan(slab)) {
      return;
    }
  }
}

}  // namespace quarry
