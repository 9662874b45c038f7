// How blocks go back to their slabs: from magazines and depots, and from the notes of cold
// classes.
#include <algorithm>

#include "arena/page_map.h"
#include "arena/report.h"
#include "tcache/remote_free.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

// Whether both addresses lie in the same granule.
bool IsNear(const void* a, const void* b) {
  return ((reinterpret_cast<uintptr_t>(a) ^ reinterpret_cast<uintptr_t>(b)) >>
          kGranuleShift) == 0;
}

}  // namespace

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
      PutLentNote(p);
      ++note;
      continue;
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
  if (shelf.is_cold && shelf.depot_count <= MostDepotMagazines(last) / 2 &&
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
      if (!ForeignAllowance::MayHave(size_class) ||
          !had_foreign_.load(std::memory_order_relaxed)) {
        ReportCorruptLink(linked_from);
      }
      FreeRemotely(slab, block);
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

void ThreadCache::FlushDepot(SizeClass size_class, uint8_t magazines) {
  Shelf& shelf = shelves_[size_class];
  QUARRY_DCHECK(magazines <= shelf.depot_count);
  if (magazines == 0) return;
  Depot& depot = DepotOf(size_class);
  for (uint32_t i = 0; i < magazines; ++i) Flush(depot[i], size_class);
  std::copy(depot + magazines, depot + shelf.depot_count, depot);
  shelf.depot_count = static_cast<uint8_t>(shelf.depot_count - magazines);
  shelf.depot_unused = std::min(shelf.depot_unused, shelf.depot_count);
  depot_bytes_ -= magazines * FullMagazineBytes(size_class);
}

void ThreadCache::FlushClass(SizeClass size_class) {
  Magazine& magazine = magazines_[size_class];
  if (magazine.head != nullptr) {
    Flush(magazine.head, size_class);
    magazine.head = nullptr;
  }
  magazine.capacity = std::min(magazine.capacity, MostMagazineBlocks(size_class));
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
  while (Run* run = runs_.PopAbove(0)) arena()->Deallocate(run);
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

void ThreadCache::GiveBlocksBackUnlocked() {
  // As TakeRunUnbiased().
  if (!lock_.TryAcquireAsOwner()) return;
  SetUsed(true);
  GiveBlocksBack();
  lock_.ReleaseAsOwner();
}

}  // namespace quarry
