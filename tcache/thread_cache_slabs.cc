// The slabs of a cache: where they come from, their lists, and where they go.
#include <algorithm>
#include <bit>

#include "arena/page_map.h"
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/remote_free.h"
#include "tcache/slab_token.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

// A class with so many full slabs leaves little of them empty with the last.
constexpr uint32_t kManySlabs = 16;
// Of its slabs a thread has left at most one of each class untouched, since a class
// takes the next when all blocks of the others were given out. That is little beside so
// many of each, or so many bytes.
constexpr size_t kSlabsOfEach = 3;
constexpr size_t kManySlabBytes = size_t{8} << 20;

}  // namespace

Slab* ThreadCache::AcquireSlab(SizeClass size_class) {
  // Now and then, however seldom the batch is full.
  (void)FlushRemoteFrees(this);
  Shelf& shelf = shelves_[size_class];
  SlabList& inherited = shelf.slabs[kInherited];
  if (shelf.new_slabs_first == 0 && !inherited.IsEmpty()) {
    return TakeInherited(&inherited);
  }
  Slab* slab = OrphansOf(arena()->index()).Adopt(size_class, this);
  if (slab == nullptr) {
    // What a program that has turned to small blocks does not take up again may serve
    // for them.
    if (Run* run = runs_.PopIdle()) arena()->Deallocate(run);
    if (WantsBlocksBackFor(kSlabBytes)) GiveBlocksBack();
    if (WantsNewPages() && cache_registry.HasSeveral()) slab = BorrowSlab(size_class);
  }
  if (slab != nullptr) {
    ++counters_.adoptions;
    owned_slab_bytes_ += kSlabBytes;
    TakeOwnership(slab);
    return slab;
  }
  const Filling filling = FillingOfNext(size_class);
  slab = Slab::Make(arena(), size_class, filling);
  if (slab == nullptr) {
    return inherited.IsEmpty() ? nullptr : TakeInherited(&inherited);
  }
  // What is resident too early is little beside what the class has.
  constexpr uint32_t kMost = Slab::kMostPopulatedPages;
  slab->PopulateBy(filling == Filling::kFromLowEnd
                       ? kMost
                       : std::bit_floor(FullSlabs(size_class, kMost) | 1));
  if (slab->is_of_new_pages() && remote_batch_.frees() != 0) WantForeign(size_class);
  if (shelf.new_slabs_first > 0) --shelf.new_slabs_first;
  ++counters_.slabs_made;
  owned_slab_bytes_ += kSlabBytes;
  slab->owner.store(this, std::memory_order_relaxed);
  TakeOwnership(slab);
  return slab;
}

uint32_t ThreadCache::FullSlabs(SizeClass size_class, uint32_t most) const {
  uint32_t full = 0;
  const Slab* slab = shelves_[size_class].slabs[Slab::kFull].first();
  for (; slab != nullptr && full < most; slab = slab->next) ++full;
  return full;
}

Filling ThreadCache::FillingOfNext(SizeClass size_class) const {
  // Of such a block the last pages stay untouched, as a rule.
  if (BlockBytes(size_class) > kSlabsOnlyMaxBytes) return Filling::kUnknown;
  const size_t enough_bytes =
      std::clamp(kSlabsOfEach * classes_with_slabs_ * kSlabBytes,
                 Arena::kGrownBytes, kManySlabBytes);
  return owned_slab_bytes_ >= enough_bytes ||
                 FullSlabs(size_class, kManySlabs) == kManySlabs
             ? Filling::kFromLowEnd
             : Filling::kUnknown;
}

Slab* ThreadCache::TakeInherited(SlabList* list) {
  Slab* const slab = list->PopFront();
  owned_slab_bytes_ += kSlabBytes;
  // Its blocks are to be written to now, so their frees may be, too.
  TakeOwnership(slab);
  return slab;
}

void ThreadCache::TakeOwnership(Slab* slab) {
  const SizeClass c = slab->size_class();
  PageMap::Set(slab->start(), kSlabBytes, tag_ | MagazineOffset(c), slab);
  slab->owner_tag = tag_;
  slab->UpdateFullness();
  slab->ForgetPass();
  Shelf& shelf = shelves_[c];
  shelf.slabs[slab->fullness()].PushFront(slab);
  if (!shelf.had_slab) {
    shelf.had_slab = true;
    ++classes_with_slabs_;
  }
}

void ThreadCache::MoveToItsList(Slab* slab) {
  const uint8_t before = ListOf(slab);
  slab->UpdateFullness();
  const uint8_t after = ListOf(slab);
  // Of an inherited slab: its neighbours would be written to.
  if (ABSL_PREDICT_FALSE(after == before)) return;
  Shelf& shelf = shelves_[slab->size_class()];
  shelf.slabs[before].Remove(slab);
  SlabList& list = shelf.slabs[after];
  // One empty slab stays, so that a thread at the edge of needing it does not
  // take and return it in turn.
  if (after == Slab::kEmpty && (!list.IsEmpty() || IsInherited(slab))) {
    ReturnEmptySlab(slab);
    return;
  }
  slab->ForgetPass();
  list.PushFront(slab);
}

void ThreadCache::ReturnEmptySlab(Slab* slab) {
  ++counters_.slabs_returned;
  if (!IsInherited(slab)) owned_slab_bytes_ -= kSlabBytes;
  Slab::Return(slab);
}

bool ThreadCache::ReturnEmptySlabs() {
  bool any = false;
  for (Shelf& shelf : shelves_) {
    while (Slab* slab = shelf.slabs[Slab::kEmpty].PopFront()) {
      ReturnEmptySlab(slab);
      any = true;
    }
  }
  return any;
}

void ThreadCache::DrainPending() {
  looks_.store(0, std::memory_order_relaxed);
  Slab* pending = pending_.TakeAll();
  Slab* others = nullptr;
  while (Slab* slab = PopOwn(&pending, &others)) {
    counters_.drained_blocks += slab->Drain();
    RelistAfterPut(slab);
  }
  PassTokens(others);
}

Slab* ThreadCache::PopOwn(Slab** pending, Slab** others) {
  while (Slab* slab = *pending) {
    // Before the caller drains it, which gives the token away: the next thread that gets
    // it pushes the slab again and writes its link.
    *pending = slab->pending_next;
    if (Owns(slab)) return slab;
    // Pushed by a thread that saw an owner which had this cache's memory before us, or us
    // before the slab was lent.
    slab->pending_next = *others;
    *others = slab;
  }
  return nullptr;
}

void ThreadCache::PassTokens(Slab* slabs) {
  while (slabs != nullptr) {
    Slab* next = slabs->pending_next;
    PassToken(slabs);
    slabs = next;
  }
}

}  // namespace quarry
