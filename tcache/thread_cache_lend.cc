// Slabs of idle threads for one that would touch new pages: the part of thread_cache.h about
// lending.
//
// What is free in a slab is its owner's. But an owner that waits uses none of it, and does
// not even learn of what others free there: of threads that work in turn, each would come to
// have as much as all of them hold. So a thread that is to have a slab of new pages first
// looks whether others of its arena have slabs with remote frees that wait. Where it finds
// some a second time, and the owner has not come for them, it takes them in itself, gives
// empty slabs to the arena, and makes the others orphans, of which it adopts what it needs.
//
// Only slabs of classes of which a thread may keep others' blocks are lent, for the same
// reasons (foreign_allowance.h); the owner has such blocks then, in its magazines, in its
// notes, and wherever it was about to free one of its own.
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/remote_free.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

// A thread that works comes for its remote frees while another makes that many slabs.
constexpr uint32_t kLooksOfIdle = 2;

// So many caches are looked at for a slab, a line of each.
constexpr int kMostLooks = 16;

}  // namespace

Slab* ThreadCache::BorrowSlab(SizeClass size_class) {
  Orphans& orphans = OrphansOf(arena()->index());
  Slab* slab = nullptr;
  int looks = 0;
  const auto ask = [&](ThreadCache* cache) {
    if (cache != this && cache->arena() == arena() && cache->SeemsIdle()) {
      cache->LendSlabs();
      slab = orphans.Adopt(size_class, this);
      if (slab != nullptr || !WantsNewPages()) return false;
    }
    return ++looks < kMostLooks;
  };
  // Each time from where the last one ended, and once around.
  ThreadCache* const first = next_lender_;
  next_lender_ = cache_registry.VisitWhile(first, ask);
  if (first != nullptr && next_lender_ == nullptr && slab == nullptr && WantsNewPages()) {
    next_lender_ = cache_registry.VisitWhile(
        nullptr, [&](ThreadCache* cache) { return cache != first && ask(cache); });
  }
  return slab;
}

bool ThreadCache::SeemsIdle() {
  if (!pending_.HasAny()) return false;
  // Of two that count at once one may be lost.
  const uint32_t looks = looks_undrained_.load(std::memory_order_relaxed) + 1;
  looks_undrained_.store(looks, std::memory_order_relaxed);
  return looks >= kLooksOfIdle;
}

void ThreadCache::LendSlabs() {
  if (!lock_.TryAcquire()) return;
  if (!pending_.IsClosed()) {
    DrainForTidy();
    (void)ReturnEmptySlabs();
    // Before anyone else has one of them.
    had_foreign_.store(true, std::memory_order_relaxed);
    Orphans& orphans = OrphansOf(arena()->index());
    LockHolder hold_orphans(orphans.lock());
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      if (!ForeignAllowance::MayHave(c)) continue;
      for (uint32_t f = Slab::kThreeFourths; f < Slab::kEmpty; ++f) {
        while (Slab* const slab = shelves_[c].slabs[f].PopFront()) {
          owned_slab_bytes_ -= kSlabBytes;
          orphans.Add(slab);
        }
      }
    }
  }
  lock_.Release();
}

void ThreadCache::PutLentNote(void* p) {
  const Tag tag = PageMap::TagOf(p);
  const SizeClass size_class = ClassOfTag(tag);
  if (!had_foreign_.load(std::memory_order_relaxed) || tag == kNoTag ||
      size_class >= kClasses || !ForeignAllowance::MayHave(size_class)) {
    ReportForeignPointer("free", p);
  }
  MarkFree(Slab::Of(p), p);
}

}  // namespace quarry
