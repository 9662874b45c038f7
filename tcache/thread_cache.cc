#include "tcache/thread_cache.h"

#include <algorithm>
#include <utility>

#include "arena/maintenance_signal.h"
#include "arena/report.h"
#include "tcache/remote_free.h"
#include "tcache/thread_life.h"

namespace quarry {
namespace {

template <size_t... kIndex>
constexpr std::array<uint16_t, sizeof...(kIndex)> MakeMagazineOffsets(
    std::index_sequence<kIndex...>) {
  return {static_cast<uint16_t>(
      MagazineOffset(ClassOf(kIndex * kMinAlignmentBytes)))...};
}

// A refill that has found less than this part of what it takes, and less than so many
// bytes, makes more of a slab resident; with more, what others free meanwhile may do
// for the next one.
constexpr int32_t kFewForRefill = 8;
constexpr size_t kFewBytesForRefill = 1024;

}  // namespace

// Aligned so that the entries of the smallest sizes share one cache line.
alignas(64) constexpr std::array<uint16_t,
                                 kSmallMaxBytes / kMinAlignmentBytes + 1>
    magazine_offsets = MakeMagazineOffsets(
        std::make_index_sequence<kSmallMaxBytes / kMinAlignmentBytes + 1>());

constinit ThreadCache no_cache;
thread_local constinit ThreadState thread_state = {
    &no_cache, &no_cache, 0, false, 0, kNobodysTag};

// --- Allocation. ---

void* ThreadCache::Allocate(SizeClass size_class) {
  ThreadCache* cache = CurrentCache();
  if (ABSL_PREDICT_FALSE(cache == nullptr)) {
    cache = StrayCache();
    if (cache == nullptr) return nullptr;
    BiasedLockHolder hold(cache->lock_);
    return cache->TakeOne(size_class);
  }
  if (ABSL_PREDICT_FALSE(thread_state.tag == 0)) {
    OwnerLockHolder hold(cache->lock_);
    return cache->TakeOne(size_class);
  }
  return cache->AllocateOwn(size_class);
}

inline Slab* ThreadCache::SlabForRefill(SizeClass size_class) {
  Slab* const slab = BestSlab(size_class);
  // Seldom while the next free blocks are resident: each drain takes lines away from
  // the threads that are freeing, and a later one finds more on them.
  const uint32_t refills = refills_undrained_.load(std::memory_order_relaxed) + 1;
  if (slab != nullptr && refills < kMostUndrained && slab->NextIsResident()) {
    refills_undrained_.store(refills, std::memory_order_relaxed);
    return slab;
  }
  refills_undrained_.store(0, std::memory_order_relaxed);
  if (pending_.IsEmpty()) return slab;
  DrainPending();
  return BestSlab(size_class);
}

inline void ThreadCache::FillFrom(Slab* slab, Magazine* magazine,
                                  SizeClass size_class) {
  QUARRY_DCHECK(magazine->head == nullptr);
  // A thread that only allocates has so much of each class at hand that nobody uses.
  const int32_t wanted =
      std::min(magazine->capacity / 2, MostRefillBlocks(size_class));
  BlockList list;
  int32_t taken = 0;
  do {
    taken += static_cast<int32_t>(
        slab->TakeBlocks(static_cast<size_t>(wanted - taken), &list));
    RelistAfterTake(slab);
    // The fullest comes first also where only a slab that is less full has blocks that
    // were given out.
  } while (taken * 2 < wanted && (slab = BestSlab(size_class)) != nullptr &&
           (slab->NextIsResident() ||
            (taken * kFewForRefill < wanted &&
             static_cast<size_t>(taken) * slab->block_bytes() < kFewBytesForRefill)));
  magazine->room = magazine->capacity - taken;
  magazine->head = list.Finish();
}

inline void ThreadCache::LookForRing() {
  const SizeClass size_class = ring_class_;
  ring_class_ = static_cast<uint8_t>((size_class + 1) % kClasses);
  const Magazine& magazine = magazines_[size_class];
  // Finds the block that is in it twice.
  if (ABSL_PREDICT_FALSE(magazine.room > magazine.capacity)) FlushClass(size_class);
}

void* ThreadCache::Refill(SizeClass size_class) {
  SetUsed(true);
  LookForRing();
  Magazine& magazine = magazines_[size_class];
  Shelf& shelf = shelves_[size_class];
  if (shelf.depot_count > 0) {
    TakeFromDepot(size_class);
    return magazine.Pop();
  }
  if (shelf.is_cold) TurnWarm(size_class);
  if (notes_count_ > 0) FlushCold();
  Slab* slab = SlabForRefill(size_class);
  if (ABSL_PREDICT_FALSE(shelf.was_idle)) {
    shelf.was_idle = false;
    magazine.capacity = FirstMagazineBlocks(size_class);
    magazine.room = magazine.capacity;  // It is empty.
  } else {
    GrowMagazine(&magazine);
  }
  if (slab == nullptr) slab = AcquireSlab(size_class);
  if (slab == nullptr) return nullptr;
  FillFrom(slab, &magazine, size_class);
  ++counters_.refills;
  return magazine.Pop();
}

void* ThreadCache::TakeOne(SizeClass size_class) {
  SetUsed(true);
  if (!pending_.IsEmpty()) DrainPending();
  Slab* slab = BestSlab(size_class);
  if (slab == nullptr) slab = AcquireSlab(size_class);
  if (slab == nullptr) return nullptr;
  BlockList list;
  (void)slab->TakeBlocks(1, &list);
  RelistAfterTake(slab);
  return list.Finish();
}

void ThreadCache::TakeFromDepot(SizeClass size_class) {
  Shelf& shelf = shelves_[size_class];
  --shelf.depot_count;
  if (shelf.depot_unused > shelf.depot_count) {
    shelf.depot_unused = shelf.depot_count;
  }
  depot_bytes_ -= FullMagazineBytes(size_class);
  Magazine& magazine = magazines_[size_class];
  magazine.head = DepotOf(size_class)[shelf.depot_count];
  magazine.capacity = MostMagazineBlocks(size_class);
  magazine.room =
      magazine.capacity - static_cast<int32_t>(FullMagazineBlocks(size_class));
  // Not at once, or a thread at the edge would turn with every other call.
  if (shelf.is_cold && shelf.depot_count <= MostDepotMagazines(size_class) / 2) {
    TurnWarm(size_class);
  }
}

void ThreadCache::TurnCold(SizeClass size_class) {
  shelves_[size_class].is_cold = true;
  any_was_cold_ = true;
  Magazine& magazine = magazines_[size_class];
  // No offset and no size passes.
  magazine.start_limit = 0;
  magazine.min_request_bytes =
      static_cast<uint32_t>(MinRequestBytes(size_class)) + Magazine::kColdShift;
}

void ThreadCache::TurnWarm(SizeClass size_class) {
  // In a cache that begins, the shelf of a class that nobody uses stays untouched.
  if (shelves_[size_class].is_cold) shelves_[size_class].is_cold = false;
  Magazine& magazine = magazines_[size_class];
  magazine.start_reciprocal = StartReciprocal(size_class);
  magazine.start_limit = magazine.start_reciprocal;
  magazine.min_request_bytes =
      static_cast<uint32_t>(MinRequestBytes(size_class));
  magazine.request_sizes = static_cast<uint32_t>(
      BlockBytes(size_class) - MinRequestBytes(size_class) + 1);
}

void ThreadCache::GrowMagazine(Magazine* magazine) {
  const int32_t most = MostMagazineBlocks(ClassOfMagazine(magazine));
  const int32_t capacity = std::min(magazine->capacity * 2, most);
  magazine->room += capacity - magazine->capacity;
  magazine->capacity = capacity;
}

Slab* ThreadCache::BestSlab(SizeClass size_class) {
  Shelf& shelf = shelves_[size_class];
  for (uint32_t f = Slab::kThreeFourths; f <= Slab::kEmpty; ++f) {
    if (!shelf.slabs[f].IsEmpty()) return shelf.slabs[f].first();
  }
  return nullptr;
}

// --- Deallocation. ---

void ThreadCache::Free(Slab* slab, void* p) {
  ThreadCache* cache = thread_state.cache;
  if (!cache->Owns(slab) || !cache->TryFreeLocally(slab, p)) FreeRemotely(slab, p);
}

bool ThreadCache::TryFreeLocally(Slab* slab, void* p) {
  CheckIsBlock("free", slab, p);
  Magazine& magazine = magazines_[slab->size_class()];
  // Either every call of the thread comes here, or the fast path refused the
  // block for a reason.
  {
    OwnerLockHolder hold(lock_);
    if (ABSL_PREDICT_FALSE(!Owns(slab))) return false;
    const size_t index = slab->IndexOf(p);
    if (magazine.head == p || !slab->IsGivenOut(p) || slab->IsFree(index) ||
        notes_[notes_count_] == p) {
      ReportDoubleFree(p, slab->block_bytes(), slab->start());
    }
    if (thread_state.tag == 0) {
      SetUsed(true);
      QUARRY_CHECK(slab->PutBlock(index));
      RelistAfterPut(slab);
      maintenance_signal.NoteWork();
      return true;
    }
    // See DivertNextFree().
    if (magazine.start_reciprocal == 0) TurnWarm(slab->size_class());
  }
  if (magazine.Push(p)) Overflow(&magazine);
  return true;
}

void ThreadCache::WantForeign(SizeClass size_class) {
  if (others_are_inherited_.load(std::memory_order_relaxed)) return;
  foreign_allowance_.AddForSlab(size_class);
}

bool ThreadCache::KeepForeign(void* p, const RemoteBlock& block) {
  ThreadCache* const cache = thread_state.cache;
  const SizeClass size_class = ClassOfTag(block.tag);
  Magazine& magazine = cache->magazines_[size_class];
  if (!cache->foreign_allowance_.TryUse(size_class)) return false;
  // No limit: cold, for one.
  if (magazine.start_limit == 0 || thread_state.tag == 0 ||
      magazine.room * 2 <= magazine.capacity) {
    return false;
  }
  if (ABSL_PREDICT_FALSE(cache->remote_batch_.Holds(block))) ReportHeldTwice(p);
  cache->had_foreign_.store(true, std::memory_order_relaxed);
  magazine.Push(p);
  return true;
}

void ThreadCache::FreeOutgrown(Slab* slab, void* p) {
  ThreadCache* const cache = thread_state.cache;
  if (!cache->Owns(slab) || !cache->TryFreeOutgrownLocally(slab, p)) FreeRemotely(slab, p);
}

bool ThreadCache::TryFreeOutgrownLocally(Slab* slab, void* p) {
  CheckIsBlock("realloc", slab, p);
  OwnerLockHolder hold(lock_);
  if (ABSL_PREDICT_FALSE(!Owns(slab))) return false;
  SetUsed(true);
  if (ABSL_PREDICT_FALSE(magazines_[slab->size_class()].head == p ||
                         !slab->PutBlock(slab->IndexOf(p)))) {
    ReportDoubleFree(p, slab->block_bytes(), slab->start());
  }
  const size_t block_bytes = slab->block_bytes();
  RelistAfterPut(slab);
  untold_outgrown_.Add(block_bytes, maintenance_signal.ThreadShare());
  return true;
}

void ThreadCache::Overflow(Magazine* magazine) {
  ThreadCache* const cache = thread_state.cache;
  const SizeClass size_class = cache->ClassOfMagazine(magazine);
  const int32_t most = MostMagazineBlocks(size_class);
  if (magazine->capacity < most) return cache->GrowMagazine(magazine);
  if (magazine->capacity > most) return cache->Split(magazine, size_class);
  if (cache->spares_[size_class] == nullptr) {
    return cache->MoveToSpare(magazine, size_class);
  }
  cache->OverflowSpare(magazine, size_class);
}

void ThreadCache::MoveToSpare(Magazine* magazine, SizeClass size_class) {
  // In this order, for the child of a fork: see RepairMoves().
  spares_[size_class] = magazine->head;
  std::atomic_signal_fence(std::memory_order_release);
  magazine->head = nullptr;
  magazine->room = magazine->capacity;
}

void ThreadCache::OverflowSpare(Magazine* magazine, SizeClass size_class) {
  OwnerLockHolder hold(lock_);
  SetUsed(true);
  const Shelf& shelf = shelves_[size_class];
  const bool depot_is_full = !PutIntoDepot(spares_[size_class], size_class);
  if (IsLarge(size_class)) {
    has_large_depots_ = true;
  } else if (depot_is_full && !shelf.is_cold) {
    TurnCold(size_class);
  }
  if (shelf.is_cold) {
    // Hardly a free will come here before the class is warm again, and meanwhile each
    // block that is out of reach keeps a page.
    Flush(magazine->head, size_class);
    spares_[size_class] = nullptr;
    magazine->head = nullptr;
    magazine->room = magazine->capacity;
  } else {
    MoveToSpare(magazine, size_class);
  }
  NoteOverflow(magazine, size_class, depot_is_full);
}

bool ThreadCache::PutIntoDepot(FreeBlock* blocks, SizeClass size_class) {
  Shelf& shelf = shelves_[size_class];
  const uint32_t most = MostDepotMagazines(size_class);
  // The class may be cold already: a free that the fast path refused comes here as well.
  if (shelf.depot_count == most || depot_bytes_ >= kMostDepotBytes) {
    Flush(blocks, size_class);
    return false;
  }
  DepotOf(size_class)[shelf.depot_count++] = blocks;
  depot_bytes_ += FullMagazineBytes(size_class);
  return shelf.depot_count < most;
}

void ThreadCache::NoteOverflow(Magazine* magazine, SizeClass size_class,
                               bool depot_is_full) {
  const bool is_cold = shelves_[size_class].is_cold;
  // Also when blocks go to their slabs: those that were freed in no order keep many from
  // being empty, however few they are.
  if (depot_is_full || is_cold) {
    maintenance_signal.NoteWork();
  } else {
    maintenance_signal.NoteKept(depot_bytes_);
  }
  // Frees of a cold class come to a slow path by themselves.
  if (is_cold) return;
  // Another's next one is to start the thread, or, where there is none, to do the work
  // that a full depot is.
  if (maintenance_signal.IsWanted() ||
      (IsLarge(size_class) && depot_is_full && maintenance_signal.IsOff())) {
    DivertNextFree(magazine);
  }
}

void ThreadCache::DivertNextFree(Magazine* magazine) {
  // Notes of the class, from when it was cold, are told apart by what goes now.
  FlushCold();
  // Neither an offset nor a size passes, whether or not the class is cold.
  magazine->start_reciprocal = 0;
  magazine->start_limit = 0;
  magazine->request_sizes = 0;
}

void ThreadCache::Split(Magazine* magazine, SizeClass size_class) {
  // For the child of a fork, which must find each block in one place.
  OwnerLockHolder hold(lock_);
  const int32_t half = MostMagazineBlocks(size_class);
  FreeBlock* last = magazine->head;
  for (int32_t i = 1; i < half; ++i) last = last->next;
  spares_[size_class] = last->next;
  last->next = nullptr;
  magazine->capacity = half;
  magazine->room = 0;
}

}  // namespace quarry
