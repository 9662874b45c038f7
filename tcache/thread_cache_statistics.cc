// What a cache has, counted and checked: the part of thread_cache.h that is for any thread.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "arena/report.h"
#include "tcache/racing_copy.h"
#include "tcache/thread_cache.h"

namespace quarry {

ThreadCache::Counters ThreadCache::counters() {
  BiasedLockHolder hold(lock_);
  return counters_;
}

ThreadCache::Counters ThreadCache::AddStatistics(
    ClassStatistics (&classes)[kClasses], bool owner_rests) {
  BiasedLockHolder hold(lock_);
  // What others freed and the owner has not seen yet, or, of the stray cache, may never
  // see.
  if (!pending_.IsClosed() && !pending_.IsEmpty()) {
    DrainForTidy();
    // The maintenance thread may have found nothing to do since they were freed.
    maintenance_signal.NoteWork();
  }
  ForEachSlab([&](Slab* slab) {
    ClassStatistics& statistics = classes[slab->size_class()];
    ++statistics.slabs;
    statistics.used_blocks += slab->used();
    statistics.free_blocks += slab->free_blocks();
  });
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    classes[c].depot_blocks += shelves_[c].depot_count * FullMagazineBlocks(c);
  }
  AddOutOfReach(classes, owner_rests);
  return counters_;
}

void ThreadCache::AddOutOfReach(ClassStatistics (&classes)[kClasses],
                                bool owner_rests) const {
  const auto copy = [owner_rests](std::span<const RacingPiece> pieces) {
    if (!owner_rests) return CopyRacing(pieces);
    for (const RacingPiece& piece : pieces) {
      std::memcpy(piece.to, piece.from, piece.bytes);
    }
    return true;
  };
  // Of an owner that does not rest, nothing need fit together.
  uint32_t notes_count;
  {
    Magazine magazines[kClasses];
    FreeBlock* spares[kClasses];
    const RacingPiece pieces[] = {{magazines_, magazines, sizeof(magazines)},
                                  {spares_, spares, sizeof(spares)},
                                  {&notes_count_, &notes_count, sizeof(notes_count)}};
    if (!copy(pieces)) return;
    for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
      const auto most = static_cast<int32_t>(2 * FullMagazineBlocks(c));
      const int32_t blocks = magazines[c].capacity - magazines[c].room;
      classes[c].out_of_reach_blocks +=
          static_cast<size_t>(std::clamp(blocks, 0, most)) +
          (spares[c] != nullptr ? FullMagazineBlocks(c) : 0);
    }
  }
  // Most threads have never touched what follows, and a copy would.
  if (notes_count != 0) {
    void* notes[std::extent_v<decltype(notes_)>];
    const RacingPiece pieces[] = {{notes_, notes, sizeof(notes)}};
    if (!copy(pieces)) return;
    for (uint32_t i = 1; i <= std::min(notes_count, kMostNotes); ++i) {
      // By the class alone: a slab that has been lent has an orphan's tag.
      const SizeClass size_class = ClassOfTag(PageMap::TagOf(notes[i]));
      if (size_class != kNoClass && size_class < kClasses) {
        ++classes[size_class].out_of_reach_blocks;
      }
    }
  }
  if (remote_batch_.frees() != 0) {
    BlockWord words[RemoteBatch::kEntries];
    const RacingPiece pieces[] = {{remote_batch_.entries(), words, sizeof(words)}};
    if (!copy(pieces)) return;
    for (const BlockWord& word : words) {
      if (word.bits == 0 || word.size_class() >= kClasses) continue;
      classes[word.size_class()].out_of_reach_blocks +=
          static_cast<size_t>(std::popcount(word.bits));
    }
  }
}

void ThreadCache::Verify(bool with_magazines) {
  BiasedLockHolder hold(lock_);
  runs_.Verify();
  size_t owned_slab_bytes = 0;
  ForEachSlab([&](Slab* slab) {
    slab->Verify();
    QUARRY_CHECK(slab->owner.load(std::memory_order_relaxed) == this);
    if (!IsInherited(slab)) owned_slab_bytes += kSlabBytes;
  });
  size_t depot_bytes = 0;
  size_t classes_with_slabs = 0;
  for (SizeClass c = kEightByteClass; c < kClasses; ++c) {
    classes_with_slabs += shelves_[c].had_slab;
    const auto check = [&](FreeBlock* block, int64_t blocks) {
      for (; block != nullptr; block = block->next, --blocks) {
        QUARRY_CHECK(blocks > 0);
        Slab* slab = Slab::Of(block);
        QUARRY_CHECK(slab != nullptr && slab->size_class() == c);
        QUARRY_CHECK(slab->IsStart(block));
        if (slab->owner.load(std::memory_order_relaxed) != this) {
          QUARRY_CHECK(ForeignAllowance::MayHave(c));
          QUARRY_CHECK(had_foreign_.load(std::memory_order_relaxed));
          continue;
        }
        QUARRY_CHECK(slab->IsGivenOut(block));
        QUARRY_CHECK(!slab->IsFree(slab->IndexOf(block)));
      }
      QUARRY_CHECK(blocks == 0);
    };
    const Shelf& shelf = shelves_[c];
    for (uint32_t i = 0; i < shelf.depot_count; ++i) {
      check(DepotOf(c)[i], static_cast<int64_t>(FullMagazineBlocks(c)));
    }
    depot_bytes += shelf.depot_count * FullMagazineBytes(c);
    if (!with_magazines) continue;
    const Magazine& magazine = magazines_[c];
    check(magazine.head, magazine.capacity - magazine.room);
    if (spares_[c] == nullptr) continue;
    check(spares_[c], static_cast<int64_t>(FullMagazineBlocks(c)));
    QUARRY_CHECK(magazine.capacity == MostMagazineBlocks(c));
  }
  if (with_magazines) {
    foreign_allowance_.Verify();
    remote_batch_.Verify();
  }
  QUARRY_CHECK(depot_bytes == depot_bytes_);
  QUARRY_CHECK(owned_slab_bytes == owned_slab_bytes_);
  QUARRY_CHECK(classes_with_slabs == classes_with_slabs_);
}

}  // namespace quarry
