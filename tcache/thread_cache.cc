#include "tcache/thread_cache.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <utility>

#include "arena/maintenance_signal.h"
#include "arena/report.h"
#include "tcache/orphans.h"
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

// In the child of a fork, whose blocks of other threads are its parent's. Relaxed: set while
// there is one thread.
constinit std::atomic<bool> others_are_inherited{false};

// Whether both addresses lie in the same granule.
bool IsNear(const void* a, const void* b) {
  return ((reinterpret_cast<uintptr_t>(a) ^ reinterpret_cast<uintptr_t>(b)) >>
          kGranuleShift) == 0;
}

}  // namespace

// Aligned so that the entries of the smallest sizes share one cache line.
alignas(64) constexpr std::array<uint16_t,
                                 kSmallMaxBytes / kMinAlignmentBytes + 1>
    magazine_offsets = MakeMagazineOffsets(
        std::make_index_sequence<kSmallMaxBytes / kMinAlignmentBytes + 1>());

constinit ThreadCache no_cache;
thread_local constinit ThreadState thread_state = {
    &no_cache, &no_cache, 0, false, 0, kNobodysTag};

// How many blocks a magazine of each class may grow to hold.
constexpr std::array<int16_t, kClasses> ThreadCache::kMostBlocks = [] {
  std::array<int16_t, kClasses> most = {};
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const auto blocks = static_cast<int32_t>(kMostMagazineBytes / BlockBytes(c));
    const auto large_blocks =
        static_cast<int32_t>(kMostLargeMagazineBytes / BlockBytes(c));
    most[c] = static_cast<int16_t>(
        std::clamp(blocks,
                   std::clamp(large_blocks, kFewestMagazineBlocks, kFirstMagazineBlocks),
                   kMostMagazineBlocks));
  }
  return most;
}();

constexpr std::array<int8_t, kClasses> ThreadCache::kMostRefillBlocks = [] {
  std::array<int8_t, kClasses> most = {};
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    most[c] = static_cast<int8_t>(
        std::clamp(static_cast<int32_t>(kMostMagazineBytes / 2 / BlockBytes(c)), 1,
                   kMostMagazineBlocks / 2));
  }
  return most;
}();

constexpr std::array<uint8_t, kClasses> ThreadCache::kMostMagazines = [] {
  std::array<uint8_t, kClasses> most = {};
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    const size_t most_bytes = IsLarge(c) ? kMostDepotBytes : kMostShelfBytes;
    most[c] = static_cast<uint8_t>(
        std::clamp<size_t>(most_bytes / DepotBytes(c), 1, kDepotMagazines));
  }
  return most;
}();

// --- Lifetime. ---

void ThreadCache::Open(Tag tag, Arena* arena) {
  BiasedLockHolder hold(lock_);
  tag_ = tag;
  arena_ = arena;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    Magazine& magazine = magazines_[c];
    magazine.head = nullptr;
    magazine.capacity = FirstMagazineBlocks(c);
    magazine.room = magazine.capacity;
    TurnWarm(c);
  }
  pending_.Open();
}

void ThreadCache::Close() {
  Slab* others = nullptr;
  SlabList empty;
  lock_.AcquireAndEndBias();
  FlushAll();
  {
    Orphans& orphans = OrphansOf(arena_->index());
    LockHolder hold_orphans(orphans.lock());
    // Closed under the orphans' lock, which is released only when no slab has
    // this owner any more: a thread that finds the stack closed waits for that
    // lock and then finds out who owns its slab.
    Slab* slab = pending_.Close();
    while (slab != nullptr) {
      Slab* next = slab->pending_next;
      if (slab->owner.load(std::memory_order_relaxed) == this) {
        counters_.drained_blocks += slab->Drain();
      } else {
        slab->pending_next = others;
        others = slab;
      }
      slab = next;
    }
    owned_slab_bytes_ = 0;
    classes_with_slabs_ = 0;
    WantNoForeign();
    for (Shelf& shelf : shelves_) {
      shelf.had_slab = false;
      for (SlabList& list : shelf.slabs) {
        while ((slab = list.PopFront()) != nullptr) {
          if (slab->used() == 0) {
            empty.PushFront(slab);
          } else {
            slab->SetInherited(false);
            orphans.Add(slab);
          }
        }
      }
    }
  }
  lock_.Release();
  while (Slab* slab = empty.PopFront()) ReturnSlab(slab);
  PassTokens(others);
}

size_t ThreadCache::Rest() {
  (void)FlushRemoteFrees(this);
  OwnerLockHolder hold(lock_);
  while (Run* run = runs_.PopAbove(0)) arena_->Deallocate(run);
  FlushCold();
  size_t bytes = depot_bytes_;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    bytes += MagazineBlocks(c) * BlockBytes(c);
    const Shelf& shelf = shelves_[c];
    for (uint32_t f = Slab::kInherited; f <= Slab::kEmpty; ++f) {
      for (const Slab* slab = shelf.slabs[f].first(); slab != nullptr;
           slab = slab->next) {
        bytes += slab->ResidentFreeBytes();
      }
    }
  }
  return bytes;
}

bool ThreadCache::DrainAllAfterFork() {
  remote_batch_.RepairAfterFork();
  BiasedLockHolder hold(lock_);
  // One that was just moving is in both places, whichever way it went.
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    if (spares_[c] == magazines_[c].head) spares_[c] = nullptr;
  }
  // Tokens, in this stack or in the hands of threads that are gone, mean
  // nothing once every slab is drained whole. This also opens the stack again
  // if its thread was just closing it, since Close() will be called for that.
  (void)pending_.TakeAll();
  SlabList all;
  size_t bytes = 0;
  for (Shelf& shelf : shelves_) {
    shelf.new_slabs_first = 0;
    for (SlabList& list : shelf.slabs) {
      while (Slab* slab = list.PopFront()) {
        all.PushFront(slab);
        bytes += kSlabBytes;
        ++shelf.new_slabs_first;
      }
    }
    // An eighth as many as there are, and one.
    shelf.new_slabs_first = (shelf.new_slabs_first + 8) / 8;
  }
  const bool inherits = bytes >= kLeastInheritedBytes;
  while (Slab* slab = all.PopFront()) {
    counters_.drained_blocks += slab->DrainAll();
    slab->SetInherited(inherits);
    slab->ForgetPass();
    shelves_[slab->size_class()].slabs[slab->fullness()].PushFront(slab);
  }
  owned_slab_bytes_ = inherits ? 0 : bytes;
  return inherits;
}

void ThreadCache::ChangeTag(Tag tag) {
  OwnerLockHolder hold(lock_);
  FlushCold();  // By the old one.
  tag_ = tag;
  // What is kept is written to.
  others_are_inherited.store(true, std::memory_order_relaxed);
  WantNoForeign();
  if (thread_state.tag != 0) thread_state.SetTag(tag);
}

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

void* ThreadCache::Refill(SizeClass size_class) {
  SetUsed(true);
  Magazine& magazine = magazines_[size_class];
  Shelf& shelf = shelves_[size_class];
  if (shelf.depot_count > 0) {
    TakeFromDepot(size_class);
    return magazine.Pop();
  }
  if (shelf.is_cold) TurnWarm(size_class);
  if (notes_count_ > 0) FlushCold();
  // Seldom while the next free blocks are resident: each drain takes lines away from
  // the threads that are freeing, and a later one finds more on them.
  Slab* slab = BestSlab(size_class);
  if (slab == nullptr || ++refills_undrained_ >= kMostUndrained ||
      !slab->NextIsResident()) {
    refills_undrained_ = 0;
    if (!pending_.IsEmpty()) {
      DrainPending();
      slab = BestSlab(size_class);
    }
  }
  if (ABSL_PREDICT_FALSE(shelf.was_idle)) {
    shelf.was_idle = false;
    magazine.capacity = FirstMagazineBlocks(size_class);
    magazine.room = magazine.capacity;  // It is empty.
  } else {
    GrowMagazine(&magazine);
  }
  // A thread that only allocates has so much of each class at hand that nobody uses.
  const int32_t wanted =
      std::min(magazine.capacity / 2, int32_t{kMostRefillBlocks[size_class]});
  if (slab == nullptr) slab = AcquireSlab(size_class);
  if (slab == nullptr) return nullptr;
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
  magazine.room = magazine.capacity - taken;
  magazine.head = list.Finish();
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
  depot_bytes_ -= DepotBytes(size_class);
  Magazine& magazine = magazines_[size_class];
  magazine.head = DepotOf(size_class)[shelf.depot_count];
  magazine.capacity = kMostBlocks[size_class];
  magazine.room =
      magazine.capacity - static_cast<int32_t>(DepotBlocks(size_class));
  // Not at once, or a thread at the edge would turn with every other call.
  if (shelf.is_cold && shelf.depot_count <= kMostMagazines[size_class] / 2) {
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
  const int32_t most = kMostBlocks[ClassOfMagazine(magazine)];
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

Slab* ThreadCache::AcquireSlab(SizeClass size_class) {
  // Now and then, however seldom the batch is full.
  (void)FlushRemoteFrees(this);
  Shelf& shelf = shelves_[size_class];
  SlabList& inherited = shelf.slabs[Slab::kInherited];
  if (shelf.new_slabs_first == 0 && !inherited.IsEmpty()) {
    return TakeInherited(&inherited);
  }
  Slab* slab = OrphansOf(arena_->index()).Adopt(size_class, this);
  if (slab != nullptr) {
    ++counters_.adoptions;
    owned_slab_bytes_ += kSlabBytes;
    TakeOwnership(slab);
    return slab;
  }
  // What a program that has turned to small blocks does not take up again may serve
  // for them.
  if (Run* run = runs_.PopIdle()) arena_->Deallocate(run);
  if (WantsBlocksBackFor(kSlabBytes)) GiveBlocksBack();
  const Filling filling = FillingOfNext(size_class);
  slab = Slab::Make(arena_, size_class, filling);
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

void ThreadCache::WantForeign(SizeClass size_class) {
  if (BlockBytes(size_class) < kLeastForeignBytes ||
      others_are_inherited.load(std::memory_order_relaxed)) {
    return;
  }
  uint16_t& wanted = foreign_wanted_[size_class];
  const size_t more =
      std::min<size_t>(kForeignOfSlab * SlabBlocks(size_class), UINT16_MAX - wanted);
  wanted = static_cast<uint16_t>(wanted + more);
  all_foreign_wanted_ += static_cast<uint32_t>(more);
}

void ThreadCache::WantNoForeign() {
  if (all_foreign_wanted_ == 0) return;
  std::fill(std::begin(foreign_wanted_), std::end(foreign_wanted_), 0);
  all_foreign_wanted_ = 0;
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
  slab->SetInherited(false);
  owned_slab_bytes_ += kSlabBytes;
  // Its blocks are to be written to now, so their frees may be, too.
  TakeOwnership(slab);
  return slab;
}

void ThreadCache::TakeOwnership(Slab* slab) {
  const SizeClass c = slab->size_class();
  PageMap::Set(slab->start(), kSlabBytes, tag_ | MagazineOffset(c), slab);
  slab->UpdateFullness();
  slab->ForgetPass();
  Shelf& shelf = shelves_[c];
  shelf.slabs[slab->fullness()].PushFront(slab);
  if (!shelf.had_slab) {
    shelf.had_slab = true;
    ++classes_with_slabs_;
  }
}

// --- Deallocation. ---

void ThreadCache::Free(Slab* slab, void* p) {
  ThreadCache* cache = thread_state.cache;
  // Relaxed: only this thread makes this cache an owner, and while it is here
  // nobody takes the slab away.
  if (slab->owner.load(std::memory_order_relaxed) == cache) {
    cache->FreeLocally(slab, p);
  } else {
    FreeRemotely(slab, p);
  }
}

void ThreadCache::FreeLocally(Slab* slab, void* p) {
  CheckIsBlock("free", slab, p);
  Magazine& magazine = magazines_[slab->size_class()];
  // Either every call of the thread comes here, or the fast path refused the
  // block for a reason.
  {
    OwnerLockHolder hold(lock_);
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
      return;
    }
    // See DivertNextFree().
    if (magazine.start_reciprocal == 0) TurnWarm(slab->size_class());
  }
  if (magazine.Push(p)) Overflow(&magazine);
}

bool ThreadCache::KeepForeign(void* p, const RemoteBlock& block) {
  ThreadCache* const cache = thread_state.cache;
  const SizeClass size_class = ClassOfTag(block.tag);
  uint16_t& wanted = cache->foreign_wanted_[size_class];
  Magazine& magazine = cache->magazines_[size_class];
  if (wanted == 0) return false;
  --wanted;
  --cache->all_foreign_wanted_;
  // No limit: cold, for one.
  if (magazine.start_limit == 0 || thread_state.tag == 0 ||
      magazine.room * 2 <= magazine.capacity) {
    return false;
  }
  if (ABSL_PREDICT_FALSE(cache->remote_batch_.Holds(block))) ReportHeldTwice(p);
  cache->had_foreign_.store(true, std::memory_order_relaxed);
  cache->remote_batch_.CountFree();
  magazine.Push(p);
  return true;
}

void ThreadCache::FreeOutgrown(Slab* slab, void* p) {
  ThreadCache* const cache = thread_state.cache;
  // As in Free().
  if (slab->owner.load(std::memory_order_relaxed) != cache) {
    return FreeRemotely(slab, p);
  }
  CheckIsBlock("realloc", slab, p);
  OwnerLockHolder hold(cache->lock_);
  cache->SetUsed(true);
  if (ABSL_PREDICT_FALSE(cache->magazines_[slab->size_class()].head == p ||
                         !slab->PutBlock(slab->IndexOf(p)))) {
    ReportDoubleFree(p, slab->block_bytes(), slab->start());
  }
  cache->outgrown_bytes_ += slab->block_bytes();
  cache->RelistAfterPut(slab);
  if (cache->outgrown_bytes_ > maintenance_signal.ThreadShare()) {
    cache->outgrown_bytes_ = 0;
    maintenance_signal.NoteWork();
  }
}

void ThreadCache::GiveBlocksBackUnlocked() {
  // As TakeRunUnbiased().
  if (!lock_.TryAcquireAsOwner()) return;
  SetUsed(true);
  GiveBlocksBack();
  lock_.ReleaseAsOwner();
}

void* ThreadCache::TakeRunUnbiased(size_t list) {
  if (CachedRunBytes() == 0 || !lock_.TryAcquireAsOwner()) return nullptr;
  void* const start = runs_.Take(list);
  lock_.ReleaseAsOwner();
  return start;
}

size_t ThreadCache::TryGrowRun(Run* run, size_t least_pages,
                               size_t most_pages) {
  ThreadCache* const cache = thread_state.cache;
  Arena* const arena = run->arena();
  size_t pages;
  do {
    pages = arena->TryGrow(run, least_pages, most_pages);
  } while (pages == 0 && cache->arena_ == arena &&
           cache->TryGiveUpBehind(run, least_pages));
  return pages;
}

bool ThreadCache::TryGiveUpBehind(const Run* run, size_t least_pages) {
  if (CachedRunBytes() == 0) return false;
  size_t bytes;
  Run* const kept = arena_->KeptBehind(run, least_pages, &bytes);
  // As TakeRunUnbiased().
  if (kept == nullptr || !lock_.TryAcquireAsOwner()) return false;
  // It may be another thread's, or have left the cache since.
  const bool is_removed = runs_.TryRemove(kept, bytes);
  if (is_removed) arena_->Deallocate(kept);
  lock_.ReleaseAsOwner();
  return is_removed;
}

void ThreadCache::FreeRun(Run* run) {
  ThreadCache* cache = thread_state.cache;
  if (cache == &no_cache || run->arena() != cache->arena_) {
    return run->arena()->Deallocate(run);
  }
  // Two threads that free it at once may both get here: see RunCache.
  run->state.store(Run::kCached, std::memory_order_relaxed);
  // As TakeRunUnbiased().
  if (ABSL_PREDICT_FALSE(!cache->lock_.TryAcquireAsOwner())) {
    return run->arena()->Deallocate(run);
  }
  cache->KeepRun(run);
  cache->lock_.ReleaseAsOwner();
}

void ThreadCache::KeepRun(Run* run) {
  const size_t bytes = run->bytes();
  if (RunCache::ListOfRun(bytes) == RunCache::kNoList) return arena_->Deallocate(run);
  while (Run* other = runs_.PopToFit(bytes)) arena_->Deallocate(other);
  (void)runs_.Put(run);
  maintenance_signal.NoteKept(runs_.cached_bytes());
}

void ThreadCache::Overflow(Magazine* magazine) {
  ThreadCache* cache = thread_state.cache;
  const SizeClass size_class = cache->ClassOfMagazine(magazine);
  if (magazine->capacity < kMostBlocks[size_class]) {
    cache->GrowMagazine(magazine);
    return;
  }
  if (magazine->capacity > kMostBlocks[size_class]) {
    return cache->Split(magazine, size_class);
  }
  FreeBlock*& spare = cache->spares_[size_class];
  const auto move_to_spare = [&spare, magazine] {
    // In this order, for the child of a fork: see DrainAllAfterFork().
    spare = magazine->head;
    std::atomic_signal_fence(std::memory_order_release);
    magazine->head = nullptr;
    magazine->room = magazine->capacity;
  };
  if (spare == nullptr) return move_to_spare();
  OwnerLockHolder hold(cache->lock_);
  cache->SetUsed(true);
  Shelf& shelf = cache->shelves_[size_class];
  bool is_full = shelf.depot_count == kMostMagazines[size_class] ||
                 cache->depot_bytes_ >= kMostDepotBytes;
  if (is_full) {
    // It may be cold: a free that the fast path refused comes here as well.
    cache->Flush(spare, size_class);
  } else {
    cache->DepotOf(size_class)[shelf.depot_count++] = spare;
    cache->depot_bytes_ += DepotBytes(size_class);
    is_full = shelf.depot_count == kMostMagazines[size_class];
  }
  const bool is_large = IsLarge(size_class);
  if (is_large) {
    cache->has_large_depots_ = true;
  } else if (is_full && !shelf.is_cold) {
    cache->TurnCold(size_class);
  }
  if (shelf.is_cold) {
    // Hardly a free will come here before the class is warm again, and meanwhile each
    // block that is out of reach keeps a page.
    cache->Flush(magazine->head, size_class);
    spare = nullptr;
    magazine->head = nullptr;
    magazine->room = magazine->capacity;
  } else {
    move_to_spare();
  }
  // Also when blocks go to their slabs: those that were freed in no order keep many from
  // being empty, however few they are.
  if (is_full || shelf.is_cold) {
    maintenance_signal.NoteWork();
  } else {
    maintenance_signal.NoteKept(cache->depot_bytes_);
  }
  // Frees of a cold class come to a slow path by themselves.
  if (!shelf.is_cold && (maintenance_signal.IsWanted() ||
                         (is_large && is_full && maintenance_signal.IsOff()))) {
    cache->DivertNextFree(magazine);
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
  const int32_t half = kMostBlocks[size_class];
  FreeBlock* last = magazine->head;
  for (int32_t i = 1; i < half; ++i) last = last->next;
  spares_[size_class] = last->next;
  last->next = nullptr;
  magazine->capacity = half;
  magazine->room = 0;
}

void ThreadCache::FlushNotes() {
  OwnerLockHolder hold(lock_);
  FlushCold();
}

void ThreadCache::FlushCold() {
  const uint32_t count = notes_count_;
  if (count == 0) return;
  SetUsed(true);
  notes_[count + 1] = nullptr;  // Near no block.
  void** const end = notes_ + count + 1;
  // Before its slab may be given back; only to be believed after the loop.
  const SizeClass last = ClassOfTag(PageMap::SureHomeTagOf(end[-1]));
  for (void** note = notes_ + 1; note != end;) {
    void* const p = *note;
    // By the tag: a slab that was given back after the first of two frees of its
    // block has another.
    const Tag offset = PageMap::SureHomeTagOf(p) - tag_;
    if (ABSL_PREDICT_FALSE(offset >= kOwnerUnit)) {
      ReportForeignPointer("free", p);
    }
    auto* const slab = static_cast<Slab*>(PageMap::HomeDescriptorOf(p));
    // By the magazine and not by the slab, whose line may be a while in coming.
    const auto* const magazine = reinterpret_cast<const Magazine*>(
        reinterpret_cast<const char*>(magazines_) + offset);
    const size_t index =
        BlockOfOffset(OffsetInGranule(p), magazine->start_reciprocal).index();
    // Blocks that were allocated in a row are often freed in a row, and then
    // whole words of a bitmap come together. Asked by the addresses alone: in a
    // heap that is freed in no order, the loads for one block must not wait for
    // those of the block before it.
    if (IsNear(p, note[1])) {
      note = PutNotedWord(note, slab, index);
    } else {
      if (ABSL_PREDICT_FALSE(!slab->PutBlock(index))) ReportNote(p);
      ++note;
    }
    RelistAfterPut(slab);
  }
  notes_count_ = 0;
  // The depot may have been given back meanwhile, by Tidy().
  const Shelf& shelf = shelves_[last];
  if (shelf.is_cold && shelf.depot_count <= kMostMagazines[last] / 2 &&
      depot_bytes_ < kMostDepotBytes) {
    TurnWarm(last);
  }
}

void** ThreadCache::PutNotedWord(void** note, Slab* slab, size_t index) {
  // A wait for the slab's line is one for several blocks here.
  const SlabGeometry& geometry = Slab::kGeometry[slab->size_class()];
  if (ABSL_PREDICT_FALSE(index >= geometry.blocks)) ReportNote(*note);
  const size_t first = index / 64 * 64;
  const uintptr_t start = reinterpret_cast<uintptr_t>(slab->BlockAt(first));
  // Within the slab: the next one may have the note behind these.
  const size_t blocks = std::min<size_t>(geometry.blocks - first, 64);
  const size_t bytes = blocks * geometry.block_bytes;
  uintptr_t offset = reinterpret_cast<uintptr_t>(*note) - start;
  uint64_t word = 0;
  void** const first_note = note;
  do {
    const size_t bit = BlockOfOffset(offset, geometry.start_reciprocal).index();
    const uint64_t more = word | uint64_t{1} << (bit % 64);
    if (ABSL_PREDICT_FALSE(more == word)) ReportNote(*note);
    word = more;
    offset = reinterpret_cast<uintptr_t>(*++note) - start;
  } while (offset < bytes);
  slab->PutWord(first / 64, word, static_cast<size_t>(note - first_note));
  return note;
}

void ThreadCache::ReportNote(void* p) {
  const Slab* const slab = Slab::Of(p);
  // What lies behind a slab's last block may be noted.
  CheckIsBlock("free", slab, p);
  ReportDoubleFree(p, slab->block_bytes(), slab->start());
}

void ThreadCache::ReportOtherTag(const FreeBlock* block, SizeClass size_class,
                                 const FreeBlock* linked_from) {
  // With the first of two frees of its last block in use, a slab may have gone back.
  const uint32_t offset = OffsetInGranule(block);
  if (PageMap::TagOf(block) == kRunTag &&
      BlockOfOffset(offset, StartReciprocal(size_class)).IsStart()) {
    ReportDoubleFree(block, BlockBytes(size_class),
                     reinterpret_cast<const char*>(block) - offset);
  }
  ReportCorruptLink(linked_from);
}

void ThreadCache::Flush(FreeBlock* first, SizeClass size_class) {
  const FreeBlock* linked_from = first;
  for (FreeBlock* block = first; block != nullptr;) {
    // A link that a write after free has changed leads anywhere, so neither the
    // address nor what it finds is trusted.
    const Tag offset = PageMap::TagOf(block) & (kOwnerUnit - 1);
    if (ABSL_PREDICT_FALSE(offset != MagazineOffset(size_class))) {
      ReportOtherTag(block, size_class, linked_from);
    }
    Slab* slab = Slab::Of(block);
    const size_t index = slab->IndexOf(block);
    if (ABSL_PREDICT_FALSE(slab->BlockAt(index) != reinterpret_cast<char*>(block))) {
      ReportCorruptLink(linked_from);
    }
    FreeBlock* next = block->next;
    // Relaxed: nobody makes this cache an owner or takes its slabs while it is locked.
    if (ABSL_PREDICT_FALSE(slab->owner.load(std::memory_order_relaxed) != this)) {
      if (BlockBytes(size_class) < kLeastForeignBytes ||
          !had_foreign_.load(std::memory_order_relaxed)) {
        ReportCorruptLink(linked_from);
      }
      FreeKept(slab, block);
    } else if (ABSL_PREDICT_FALSE(!slab->PutBlock(index))) {
      // The fast path takes what lies behind a slab's last block for one.
      CheckIsBlock("free", slab, block);
      ReportDoubleFree(block, slab->block_bytes(), slab->start());
    } else {
      RelistAfterPut(slab);
    }
    linked_from = block;
    block = next;
  }
  ++counters_.flushes;
}

void ThreadCache::FlushClass(SizeClass size_class) {
  Magazine& magazine = magazines_[size_class];
  if (magazine.head != nullptr) {
    Flush(magazine.head, size_class);
    magazine.head = nullptr;
  }
  magazine.capacity = std::min(magazine.capacity, int32_t{kMostBlocks[size_class]});
  magazine.room = magazine.capacity;
  // Of a class that nobody uses what follows stays untouched.
  if (spares_[size_class] != nullptr) {
    Flush(spares_[size_class], size_class);
    spares_[size_class] = nullptr;
  }
  Shelf& shelf = shelves_[size_class];
  FlushDepot(size_class, shelf.depot_count);
  if (shelf.is_cold) TurnWarm(size_class);
}

void ThreadCache::FlushAll() {
  (void)FlushRemoteFrees(this);
  FlushCold();
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) FlushClass(c);
  any_was_cold_ = false;
  has_large_depots_ = false;
  while (Run* run = runs_.PopAbove(0)) arena_->Deallocate(run);
}

void ThreadCache::FlushThread() {
  ThreadCache* cache = thread_state.cache;
  if (cache == &no_cache) return;
  OwnerLockHolder hold(cache->lock_);
  cache->SetUsed(true);
  cache->FlushAll();
  cache->DrainPending();
  cache->ReturnEmptySlabs();
}

// --- Slabs. ---

void ThreadCache::MoveToItsList(Slab* slab) {
  const Slab::Fullness before = slab->fullness();
  slab->UpdateFullness();
  Shelf& shelf = shelves_[slab->size_class()];
  shelf.slabs[before].Remove(slab);
  SlabList& list = shelf.slabs[slab->fullness()];
  // One empty slab stays, so that a thread at the edge of needing it does not
  // take and return it in turn.
  if (slab->fullness() == Slab::kEmpty &&
      (!list.IsEmpty() || slab->is_inherited())) {
    ReturnEmptySlab(slab);
    return;
  }
  slab->ForgetPass();
  list.PushFront(slab);
}

void ThreadCache::FlushDepot(SizeClass size_class, uint8_t magazines) {
  Shelf& shelf = shelves_[size_class];
  QUARRY_DCHECK(magazines <= shelf.depot_count);
  if (magazines == 0) return;
  Depot& depot = DepotOf(size_class);
  for (uint32_t i = 0; i < magazines; ++i) Flush(depot[i], size_class);
  std::copy(depot + magazines, depot + shelf.depot_count, depot);
  shelf.depot_count = static_cast<uint8_t>(shelf.depot_count - magazines);
  shelf.depot_unused = std::min(shelf.depot_unused, shelf.depot_count);
  depot_bytes_ -= magazines * DepotBytes(size_class);
}

void ThreadCache::GiveBlocksBack() {
  FlushCold();
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    // Magazines as well, also of classes that were never cold: they hold little, but of
    // what was freed in no order each block keeps a slab.
    if (any_was_cold_) {
      FlushClass(c);
    } else if (IsLarge(c)) {
      FlushDepot(c, shelves_[c].depot_count);
    }
  }
  if (any_was_cold_) (void)ReturnEmptySlabs();
  any_was_cold_ = false;
  has_large_depots_ = false;
}

void ThreadCache::ReturnEmptySlab(Slab* slab) {
  ++counters_.slabs_returned;
  if (!slab->is_inherited()) owned_slab_bytes_ -= kSlabBytes;
  ReturnSlab(slab);
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
  Slab* others = nullptr;
  for (Slab* slab = pending_.TakeAll(); slab != nullptr;) {
    // Before the drain, which gives the token away: the next thread that gets
    // it pushes the slab again and writes its link.
    Slab* next = slab->pending_next;
    if (slab->owner.load(std::memory_order_relaxed) == this) {
      counters_.drained_blocks += slab->Drain();
      RelistAfterPut(slab);
    } else {
      // Pushed by a thread that saw an owner which had this cache's memory
      // before us.
      slab->pending_next = others;
      others = slab;
    }
    slab = next;
  }
  PassTokens(others);
}

void ThreadCache::PassTokens(Slab* slabs) {
  while (slabs != nullptr) {
    Slab* next = slabs->pending_next;
    PassToken(slabs);
    slabs = next;
  }
}

}  // namespace quarry
