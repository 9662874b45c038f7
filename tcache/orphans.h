// Slabs whose thread exited while blocks of theirs were still in use, or waits and has lent
// them (thread_cache_lend.cc).
//
// Each arena has a list of them for each size class. A thread that needs a slab
// adopts an orphan before it asks the arena; a remote free that completes an
// orphan gives the slab back to the arena.
//
// Nobody but the holder of a slab's token drains it, orphan or not (see
// RemoteBitmap). So an orphan with undrained marks has a thread on its way to
// it, in PassToken(), or is still on the pending stack of who has lent it, and
// adoption leaves those marks alone: the token arrives at the adopter instead. If
// adoption drained, the slab could be emptied and given back under the feet of the
// thread that holds its token.
//
// Thread-safety: all functions on any thread.
// Source: the orphaned heaps of Hoard (Berger et al. 2000), by slab.
#ifndef QUARRY_TCACHE_ORPHANS_H_
#define QUARRY_TCACHE_ORPHANS_H_

#include <atomic>
#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "arena/lock.h"
#include "arena/untold_bytes.h"
#include "tcache/slab.h"
#include "tcache/slab_list.h"
#include "tcache/slab_pass.h"

namespace quarry {

class Orphans {
 public:
  constexpr Orphans() : lock_(LockRank::kOrphans) {}

  Lock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }

  // Takes a slab over that the caller owned and that is in no list.
  void Add(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // A slab with free blocks, now owned by `cache`; nullptr if there is none.
  // It is in no list, and its tag is for the caller to set.
  [[nodiscard]] Slab* Adopt(SizeClass size_class, ThreadCache* cache)
      ABSL_LOCKS_EXCLUDED(lock_);

  // Drains `slab`, whose token the caller holds, if it is an orphan, and gives
  // it back to the arena when that empties it. False if a cache owns the slab.
  [[nodiscard]] bool DrainOrphan(Slab* slab) ABSL_LOCKS_EXCLUDED(lock_);

  // For the child of a fork: drains every orphan, whoever had its token.
  void DrainAll() ABSL_LOCKS_EXCLUDED(lock_);

  // For the maintenance thread, now and then: gives back the free pages of
  // orphans that have been as they are for some calls, or, when it `is_urgent`,
  // of all. Takes so many steps at most. Sets *gave_back if there were any, and
  // returns whether there may be more at the next call.
  bool Tidy(bool is_urgent, bool* gave_back,
            size_t most_steps = SlabPass::kMostSteps)
      ABSL_LOCKS_EXCLUDED(lock_);

  // Calls visit(slab) for each orphan, under the lock.
  template <typename Visit>
  void ForEach(Visit visit) ABSL_LOCKS_EXCLUDED(lock_) {
    LockHolder hold(lock_);
    for (const SlabList& list : full_) list.ForEach(visit);
    for (const SlabList& list : partial_) list.ForEach(visit);
  }

 private:
  // Puts a slab that is in no list into the one where it belongs.
  void PutIntoList(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    slab->UpdateFullness();
    slab->ForgetPass();
    ListOf(slab).PushFront(slab);
  }

  SlabList& ListOf(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    return slab->fullness() == Slab::kFull ? full_[slab->size_class()]
                                           : partial_[slab->size_class()];
  }

  Lock lock_;
  // Apart, so that adoption does not walk past slabs that have no free block.
  SlabList full_[kClasses] ABSL_GUARDED_BY(lock_);
  SlabList partial_[kClasses] ABSL_GUARDED_BY(lock_);
  SlabPass slab_pass_ ABSL_GUARDED_BY(lock_);
  // Whether there ever was one. Written under the lock, and asked without it.
  std::atomic<bool> had_any_{false};
  // Of slabs that were added.
  UntoldBytes untold_free_ ABSL_GUARDED_BY(lock_);
};

// The orphans of the arena with this index.
Orphans& OrphansOf(size_t arena_index);

}  // namespace quarry

#endif  // QUARRY_TCACHE_ORPHANS_H_
