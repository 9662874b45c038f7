// What the maintenance thread does to a cache: the part of thread_cache.h about Tidy().
#include "tcache/thread_cache.h"

namespace quarry {

bool ThreadCache::IsTidy() const {
  return !WasUsed() && !IsUntidy() && pending_.IsEmpty() &&
         CachedRunBytes() == 0;
}

bool ThreadCache::Tidy(bool is_urgent, bool* gave_back, size_t most_steps) {
  // The owner is at work, and will be asked again.
  if (!lock_.TryAcquire()) return true;
  // It has just been closed, and has nothing: its owner waits to say so.
  if (pending_.IsClosed()) {
    lock_.Release();
    return false;
  }
  if (WasUsed()) slab_pass_.LookAgain();
  if (!pending_.IsEmpty()) DrainForTidy();
  if (is_urgent) {
    slab_pass_.Restart();
    for (Shelf& shelf : shelves_) shelf.depot_unused = shelf.depot_count;
    SetUsed(false);
    SetUntidy(true);
  }
  const bool was_quiet = !WasUsed();
  const bool looks_at_slabs = !was_quiet || IsUntidy();
  if (looks_at_slabs) {
    if (FlushUnusedDepots()) *gave_back = true;
    if (was_quiet) {
      for (Shelf& shelf : shelves_) shelf.was_idle = true;
      if (ReturnEmptySlabs()) *gave_back = true;
    }
    SetUntidy(true);
  }
  const bool has_runs = runs_.StealIdle(is_urgent, [&](Run* run) {
    run->arena()->Deallocate(run);
    *gave_back = true;
  });
  SetUsed(false);
  lock_.Release();
  if (!looks_at_slabs) return has_runs;

  const uint8_t looks = was_quiet ? 0 : SlabPass::kIdleLooks;
  for (size_t step = 0; step < most_steps; ++step) {
    // The owner may want it.
    if (!lock_.TryAcquire()) return true;
    // It may have been closed, or opened for another owner.
    const SlabPass::State state = pending_.IsClosed()
                                      ? SlabPass::State::kSomeAreYoung
                                      : PassOverSlabs(looks, gave_back);
    if (state == SlabPass::State::kAllAreDone && was_quiet && !WasUsed()) {
      SetUntidy(false);
    }
    const bool more = has_runs || IsUntidy();
    // A sleeping owner would not get the lock before us.
    const bool is_wanted = lock_.IsContended();
    lock_.Release();
    if (state != SlabPass::State::kGoesOn) return more;
    if (is_wanted && !is_urgent) return true;
  }
  return true;
}

SlabPass::State ThreadCache::PassOverSlabs(uint8_t looks, bool* gave_back) {
  return slab_pass_.Step(
      looks, gave_back,
      [this](SizeClass c) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return shelves_[c].PartlyUsed();
      });
}

bool ThreadCache::FlushUnusedDepots() {
  bool any = false;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    Shelf& shelf = shelves_[c];
    if (shelf.depot_unused > 0) {
      any = true;
      FlushDepot(c, shelf.depot_unused);
    }
    shelf.depot_unused = shelf.depot_count;
  }
  return any;
}

void ThreadCache::DrainForTidy() {
  DrainPending();
  slab_pass_.LookAgain();
  SetUntidy(true);
}

}  // namespace quarry
