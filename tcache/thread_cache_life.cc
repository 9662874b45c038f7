// How a cache begins and ends, with its thread and in the child of a fork: the part of
// thread_cache.h that cache_registry.h and thread_life.h call.
#include "arena/lock.h"
#include "tcache/orphans.h"
#include "tcache/remote_free.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

// In slabs, at a fork: of less, the child may as well copy all.
constexpr size_t kLeastInheritedBytes = 4 * 1024 * 1024;

}  // namespace

constinit std::atomic<bool> ThreadCache::others_are_inherited_{false};

void ThreadCache::Open(Tag tag, Arena* arena) {
  BiasedLockHolder hold(lock_);
  tag_ = tag;
  arena_.store(arena, std::memory_order_relaxed);
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    Magazine& magazine = magazines_[c];
    magazine.head = nullptr;
    magazine.capacity = FirstMagazineBlocks(c);
    magazine.room = magazine.capacity;
    TurnWarm(c);
  }
  pending_.Open();
  looks_.store(0, std::memory_order_relaxed);
}

void ThreadCache::Close() {
  lock_.AcquireAndEndBias();
  FlushAll();
  SlabList empty;
  Slab* const others = CloseSlabs(&empty);
  // Before the lock is released: the child of a fork would not have them.
  while (Slab* slab = empty.PopFront()) Slab::Return(slab);
  lock_.Release();
  PassTokens(others);
}

Slab* ThreadCache::CloseSlabs(SlabList* empty) {
  Orphans& orphans = OrphansOf(arena()->index());
  LockHolder hold_orphans(orphans.lock());
  // Closed under the orphans' lock, which is released only when no slab has
  // this owner any more: a thread that finds the stack closed waits for that
  // lock and then finds out who owns its slab.
  Slab* pending = pending_.Close();
  Slab* others = nullptr;
  while (Slab* slab = PopOwn(&pending, &others)) {
    counters_.drained_blocks += slab->Drain();
  }
  owned_slab_bytes_ = 0;
  classes_with_slabs_ = 0;
  foreign_allowance_.Clear();
  for (Shelf& shelf : shelves_) {
    shelf.had_slab = false;
    for (SlabList& list : shelf.slabs) {
      while (Slab* slab = list.PopFront()) {
        if (slab->used() == 0) {
          empty->PushFront(slab);
        } else {
          orphans.Add(slab);
        }
      }
    }
  }
  return others;
}

size_t ThreadCache::Rest() {
  (void)FlushRemoteFrees(this);
  OwnerLockHolder hold(lock_);
  while (Run* run = runs_.PopAbove(0)) arena()->Deallocate(run);
  FlushCold();
  size_t bytes = depot_bytes_;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    bytes += MagazineBlocks(c) * BlockBytes(c);
    Shelf& shelf = shelves_[c];
    const auto add = [&bytes](const Slab* slab) { bytes += slab->ResidentFreeBytes(); };
    for (const SlabList* list : shelf.PartlyUsed()) list->ForEach(add);
    shelf.slabs[Slab::kEmpty].ForEach(add);
  }
  return bytes;
}

void ThreadCache::RepairMoves() {
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    if (spares_[c] == magazines_[c].head && spares_[c] != nullptr) spares_[c] = nullptr;
  }
  remote_batch_.RepairAfterFork();
}

void ThreadCache::BereaveAfterFork() {
  lock_.AcquireAndEndBias();
  RepairMoves();
  // Tokens mean nothing, in this stack or in the hands of threads that are gone: each slab
  // with marks is pushed anew. This also opens the stack again if its thread was just closing
  // it, since Close() will be called for that.
  if (!pending_.IsEmpty()) (void)pending_.TakeAll();
  ForEachSlab([this](Slab* slab) {
    if (slab->RepairAfterFork()) QUARRY_CHECK(pending_.Push(slab));
  });
  lock_.Release();
}

bool ThreadCache::DrainAllAfterFork() {
  BiasedLockHolder hold(lock_);
  RepairMoves();
  // Tokens mean nothing once every slab is drained whole.
  (void)pending_.TakeAll();
  SlabList marked;
  size_t slabs = 0;
  for (Shelf& shelf : shelves_) {
    uint32_t slabs_of_class = 0;
    for (SlabList& list : shelf.slabs) {
      list.MoveIf(
          [&slabs_of_class](const Slab* slab) {
            ++slabs_of_class;
            return slab->HasMarks();
          },
          &marked);
    }
    slabs += slabs_of_class;
    // An eighth as many as there are, and one.
    shelf.new_slabs_first = (slabs_of_class + 8) / 8;
  }
  while (Slab* slab = marked.PopFront()) {
    counters_.drained_blocks += slab->DrainAll();
    slab->UpdateFullness();
    slab->ForgetPass();
    shelves_[slab->size_class()].slabs[ListOf(slab)].PushFront(slab);
  }
  return slabs * kSlabBytes >= kLeastInheritedBytes;
}

void ThreadCache::InheritSlabs(Tag new_tag) {
  OwnerLockHolder hold(lock_);
  FlushCold();  // By the old one.
  tag_ = new_tag;
  // As ListOf() is now, without a store into each slab. A pass that goes on in a list
  // which others are appended to would take it for done.
  slab_pass_.Restart();
  for (Shelf& shelf : shelves_) {
    shelf.slabs[kInheritedFull].Append(&shelf.slabs[Slab::kFull]);
    for (uint32_t f = Slab::kThreeFourths; f < Slab::kEmpty; ++f) {
      shelf.slabs[kInherited].Append(&shelf.slabs[f]);
    }
  }
  owned_slab_bytes_ = 0;
  // What is kept is written to.
  others_are_inherited_.store(true, std::memory_order_relaxed);
  foreign_allowance_.Clear();
  if (thread_state.tag != 0) thread_state.SetTag(new_tag);
}

}  // namespace quarry
