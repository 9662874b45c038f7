// Slabs of idle threads for one that would touch new pages: the part of thread_cache.h about
// lending.
//
// What is free in a slab is its owner's. But an owner that waits uses none of it, and does
// not even learn of what others free there: of threads that work in turn, each would come to
// have as much as all of them hold. So a thread that is to have a slab of new pages first
// looks whether others of its arena have slabs pending. Where that was found some times
// before, and the owner has neither come for them since nor refilled a magazine, it takes the
// frees in itself, gives empty slabs to the arena, and makes the others orphans, of which it
// adopts what it needs.
//
// Only slabs of classes of which a thread may keep others' blocks are lent, and for such a
// class, for the same reasons (foreign_allowance.h). The owner has blocks of them then, in
// its magazines, in its notes, and wherever it was about to free one of its own.
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/remote_free.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

// Of any threads: where some need slabs at the same time, two looks say little.
constexpr uint32_t kLooksOfIdle = 3;

// So many caches are looked at for a slab, at two lines of each.
constexpr int kMostLooks = 32;

// So many slabs are lent at once: the owner may come meanwhile, and waits.
constexpr int kMostLent = 256;

}  // namespace

Slab* ThreadCache::BorrowSlab(SizeClass size_class) {
  Orphans& orphans = OrphansOf(arena()->index());
  const bool takes_partly_used = ForeignAllowance::MayHave(size_class);
  Slab* slab = nullptr;
  int looks = 0;
  const auto ask = [&](ThreadCache* cache) {
    if (cache != this && cache->arena() == arena() && cache->SeemsIdle()) {
      cache->LendSlabs(takes_partly_used);
      slab = orphans.Adopt(size_class, this);
      if (slab != nullptr || !WantsNewPages()) return false;
    }
    return ++looks < kMostLooks;
  };
  // Each time from where the last one ended, and once around.
  ThreadCache* const first = next_lender_;
  next_lender_ = cache_registry.VisitWhile(first, ask);
  if (first != nullptr && next_lender_ == nullptr && slab == nullptr &&
      looks < kMostLooks && WantsNewPages()) {
    next_lender_ = cache_registry.VisitWhile(
        nullptr, [&](ThreadCache* cache) { return cache != first && ask(cache); });
  }
  return slab;
}

bool ThreadCache::SeemsIdle() {
  if (!pending_.HasAny()) return false;
  const uint32_t refills = refills_undrained_.load(std::memory_order_relaxed);
  uint32_t looks = looks_.load(std::memory_order_relaxed) + 1;
  if (refills_at_look_.load(std::memory_order_relaxed) != refills) {
    refills_at_look_.store(refills, std::memory_order_relaxed);
    looks = 1;
  }
  looks_.store(looks, std::memory_order_relaxed);
  return looks >= kLooksOfIdle;
}

void ThreadCache::LendSlabs(bool partly_used) {
  if (!lock_.TryAcquire()) return;
  if (!pending_.IsClosed()) {
    DrainForTidy();
    (void)ReturnEmptySlabs();
    if (partly_used) OrphanPartlyUsed();
  }
  lock_.Release();
}

void ThreadCache::OrphanPartlyUsed() {
  // Before anyone else has one of them.
  had_foreign_.store(true, std::memory_order_relaxed);
  Orphans& orphans = OrphansOf(arena()->index());
  LockHolder hold_orphans(orphans.lock());
  int lent = 0;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    if (!ForeignAllowance::MayHave(c)) continue;
    for (uint32_t f = Slab::kThreeFourths; f < Slab::kEmpty; ++f) {
      while (Slab* const slab = shelves_[c].slabs[f].first()) {
        if (++lent > kMostLent) return;
        shelves_[c].slabs[f].Remove(slab);
        owned_slab_bytes_ -= kSlabBytes;
        orphans.Add(slab);
      }
    }
  }
}

void ThreadCache::PutLentNote(void* p) {
  const Tag tag = PageMap::TagOf(p);
  const SizeClass size_class = ClassOfTag(tag);
  if (!had_foreign_.load(std::memory_order_relaxed) || tag == kNoTag ||
      size_class >= kClasses || !ForeignAllowance::MayHave(size_class)) {
    ReportForeignPointer("free", p);
  }
  FreeRemotely(Slab::Of(p), p);
}

}  // namespace quarry
