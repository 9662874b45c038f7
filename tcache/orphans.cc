#include "tcache/orphans.h"

#include <array>

#include "arena/maintenance_signal.h"
#include "arena/page_map.h"
#include "arena/process_arenas.h"

namespace quarry {
namespace {

constinit Orphans orphans[kMaxArenas];

}  // namespace

Orphans& OrphansOf(size_t arena_index) { return orphans[arena_index]; }

void Orphans::Add(Slab* slab) {
  const Tag tag = kNobody | MagazineOffset(slab->size_class());
  PageMap::Set(slab->start(), kSlabBytes, tag, slab);
  PutIntoList(slab);
  had_any_.store(true, std::memory_order_relaxed);
  untold_free_.Add(slab->free_blocks() * slab->block_bytes());
  // Release: a thread that sees the slab without an owner takes our lock before
  // it touches it, but one that adopted it later may be seen first.
  slab->owner.store(nullptr, std::memory_order_release);
}

Slab* Orphans::Adopt(SizeClass size_class, ThreadCache* cache) {
  // Relaxed: who misses the first one does without it. Most processes never have
  // one, and never write to the page where this is.
  if (!had_any_.load(std::memory_order_relaxed)) return nullptr;
  LockHolder hold(lock_);
  Slab* slab = partial_[size_class].PopFront();
  // Release pairs with the acquire in PassToken(): who sees the new owner also
  // sees its stack open.
  if (slab != nullptr) slab->owner.store(cache, std::memory_order_release);
  return slab;
}

bool Orphans::DrainOrphan(Slab* slab) {
  {
    LockHolder hold(lock_);
    if (slab->owner.load(std::memory_order_relaxed) != nullptr) return false;
    ListOf(slab).Remove(slab);
    slab->Drain();
    slab_pass_.LookAgain();
    if (slab->used() != 0) {
      PutIntoList(slab);
      // As with a slab that has an owner, who may be idle.
      maintenance_signal.NoteWork();
      return true;
    }
  }
  Slab::Return(slab);
  return true;
}

void Orphans::DrainAll() {
  SlabList marked;
  SlabList empty;
  {
    LockHolder hold(lock_);
    const auto has_marks = [](const Slab* slab) { return slab->HasMarks(); };
    for (SlabList& list : full_) list.MoveIf(has_marks, &marked);
    for (SlabList& list : partial_) list.MoveIf(has_marks, &marked);
    while (Slab* slab = marked.PopFront()) {
      slab->DrainAll();
      if (slab->used() == 0) {
        empty.PushFront(slab);
      } else {
        PutIntoList(slab);
      }
    }
  }
  while (Slab* slab = empty.PopFront()) Slab::Return(slab);
}

bool Orphans::Tidy(bool is_urgent, bool* gave_back, size_t most_steps) {
  const uint8_t looks = is_urgent ? 0 : SlabPass::kIdleLooks;
  bool is_wanted = false;
  for (size_t step = 0; step < most_steps; ++step) {
    // A thread that sleeps for the lock would not get it before us.
    if (is_wanted && !is_urgent) break;
    // Anew for each, since threads wait for it.
    LockHolder hold(lock_);
    if (step == 0 && is_urgent) slab_pass_.Restart();
    const SlabPass::State state = slab_pass_.Step(
        looks, gave_back, [this](SizeClass c) ABSL_NO_THREAD_SAFETY_ANALYSIS {
          return std::array{&partial_[c]};
        });
    if (state != SlabPass::State::kGoesOn) {
      return state == SlabPass::State::kSomeAreYoung;
    }
    is_wanted = lock_.IsContended();
  }
  return true;
}

}  // namespace quarry
