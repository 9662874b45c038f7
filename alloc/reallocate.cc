#include <string.h>

#include <algorithm>
#include <atomic>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "alloc/heap.h"
#include "alloc/large_blocks.h"
#include "alloc/perturb.h"
#include "alloc/rooms.h"
#include "alloc/upkeep.h"
#include "arena/arena.h"
#include "arena/filling.h"
#include "arena/huge.h"
#include "arena/limits.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "tcache/maintenance.h"
#include "tcache/remote_free.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

// A block that realloc() makes larger than this becomes huge whatever the
// threshold: what grows will grow again, and a huge block does so without a
// copy.
constexpr size_t kMostGrownRunBytes = size_t{4} << 20;

// What is longer stays in its place however much is cut off.
constexpr size_t kMostShrunkBytes = size_t{1} << 20;

// To fewer bytes of fresh pages a copy costs no more than the system call before it saves.
constexpr size_t kLeastPopulated = size_t{16} << 10;

constexpr char kRealloc[] = "realloc";

void* Move(void* p, size_t old_bytes, size_t new_bytes) {
  void* moved = TryPop(new_bytes);
  if (moved == nullptr) moved = AllocateSlow(new_bytes);
  if (moved == nullptr) return nullptr;
  memcpy(moved, p, std::min(old_bytes, new_bytes));
  Deallocate(p);
  return moved;
}

// What realloc() outgrows the thread keeps as any block that is freed, up to this size.
constexpr size_t kMostKeptOutgrownBytes = 8 * 1024;

// Frees a larger block whose content has moved: the thread does not keep what is of a
// size that was outgrown.
void FreeOutgrown(void* p) {
  // Anew: another thread may have freed it meanwhile, wrongly.
  const Room room = RoomOf(PageMap::TagOf(p));
  if (ABSL_PREDICT_FALSE(PerturbByte() != 0)) {
    Deallocate(p);
  } else if (room == Room::kSlab) {
    ThreadCache::FreeOutgrown(Slab::Of(p), p);
  } else {
    Run* const run = RunAt(kRealloc, p);
    run->arena()->Deallocate(run);
  }
}

// Copies to `block`, which is new, what will be its first `bytes`. If it is a fresh run,
// the system is asked for the pages of one piece after the other: while it makes them
// resident, no other thread can map anything.
void CopyToNew(void* block, const void* from, size_t bytes) {
  const Run* const run = bytes >= kLeastPopulated ? Arena::RunOf(block) : nullptr;
  if (run == nullptr || !run->zeroed || PerturbByte() != 0) {
    memcpy(block, from, bytes);
    return;
  }
  for (size_t done = 0; done < bytes; done += kGranuleBytes) {
    char* const piece = static_cast<char*>(block) + done;
    const size_t piece_bytes = std::min(kGranuleBytes, bytes - done);
    OsPages().Populate(piece, RoundUp(piece_bytes, PageBytes()));
    memcpy(piece, static_cast<const char*>(from) + done, piece_bytes);
  }
}

// The same as Move() of a page run, or of a block of more than kMostKeptOutgrownBytes,
// that grows.
ABSL_ATTRIBUTE_NOINLINE void* MoveGrown(void* p, size_t old_bytes, size_t new_bytes) {
  void* const moved =
      new_bytes > kSlabsOnlyMaxBytes
          ? Perturb(AllocateLarge(new_bytes, kMinAlignmentBytes).start, new_bytes)
          : AllocateSlow(new_bytes);
  if (moved == nullptr) return nullptr;
  CopyToNew(moved, p, old_bytes);
  if (Run* const run = Arena::RunOf(moved)) Arena::NoteGrown(run);
  FreeOutgrown(p);
  StartMaintenanceIfWanted();
  return moved;
}

// The same of a block of the thread's own, which is not aligned to 8 bytes only, and
// whose magazine this is, where much is to be copied.
ABSL_ATTRIBUTE_NOINLINE void* MoveOwnMany(Magazine* magazine, void* p, size_t old_bytes,
                                          size_t new_bytes) {
  if (new_bytes > old_bytes && old_bytes > kMostKeptOutgrownBytes) {
    return MoveGrown(p, old_bytes, new_bytes);
  }
  void* moved = TryPop(new_bytes);
  if (ABSL_PREDICT_FALSE(moved == nullptr)) return Move(p, old_bytes, new_bytes);
  memcpy(moved, p, std::min(old_bytes, new_bytes));
  if (ABSL_PREDICT_FALSE(!ThreadCache::TryPush(magazine, p))) Deallocate(p);
  return moved;
}

// The same, however much: what grows most often is small.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* MoveOwn(Magazine* magazine, void* p,
                                                  size_t old_bytes, size_t new_bytes) {
  const size_t bytes = std::min(old_bytes, new_bytes);
  if (bytes > kLinearMaxBytes) return MoveOwnMany(magazine, p, old_bytes, new_bytes);
  void* moved = TryPop(new_bytes);
  if (ABSL_PREDICT_FALSE(moved == nullptr)) return Move(p, old_bytes, new_bytes);
  // As TryPopZeroed() does: both blocks are whole pieces of this size.
  for (size_t i = 0; i < bytes; i += kMinAlignmentBytes) {
    memcpy(static_cast<char*>(moved) + i, static_cast<char*>(p) + i, kMinAlignmentBytes);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  if (ABSL_PREDICT_FALSE(!ThreadCache::TryPush(magazine, p))) Deallocate(p);
  return moved;
}

ABSL_ATTRIBUTE_NOINLINE bool ResizeHuge(Huge* huge, size_t bytes) {
  // Of stale pages the content tells nothing.
  const Filling filling = bytes > huge->bytes && !huge->has_huge_pages &&
                                  !huge->has_stale_pages
                              ? filling_history.Observe(huge->start, huge->bytes)
                              : Filling::kUnknown;
  bool resized = huge_blocks.Resize(huge, bytes, filling);
  if (ABSL_PREDICT_FALSE(!resized) && PurgeForRetry(bytes - huge->bytes)) {
    resized = huge_blocks.Resize(huge, bytes, filling);
  }
  NoteHuge(huge);
  RelievePressure();
  return resized;
}

// Where the system moved no pages: what the program has advised about in part, or locked,
// is several mappings, of which it moves one at a time.
ABSL_ATTRIBUTE_NOINLINE void* CopyHuge(Huge* huge, size_t bytes) {
  const Large large = AllocateLarge(bytes, huge->alignment);
  if (large.start == nullptr) return nullptr;
  auto* const to = static_cast<char*>(Perturb(large.start, bytes));
  const bool is_zero = large.zeroed && PerturbByte() == 0;
  const size_t copied_bytes = std::min(bytes, huge->bytes);
  for (size_t done = 0; done < copied_bytes; done += PageBytes()) {
    const char* const from = huge->start + done;
    const size_t piece = std::min(copied_bytes - done, PageBytes());
    // What was never touched is not to be resident now.
    const bool is_same = is_zero && from[0] == 0 && memcmp(from, from + 1, piece - 1) == 0;
    if (!is_same) memcpy(to + done, from, piece);
  }
  huge_blocks.Deallocate(huge);
  return to;
}

// Moves a run into a huge block of `bytes` bytes.
ABSL_ATTRIBUTE_NOINLINE void* MoveToHuge(Run* run, size_t bytes) {
  if (bytes > PTRDIFF_MAX) return nullptr;
  // Of what another block was before, its bytes tell nothing.
  const Filling filling = run->zeroed
                              ? filling_history.Observe(run->start, run->bytes())
                              : filling_history.Expect(bytes);
  // What is filled and not large is copied to huge pages: its own are small ones, and who
  // has the run next would have to fault them again.
  const bool is_copied = filling == Filling::kFromLowEnd && !run->has_huge_pages &&
                         run->bytes() <= 2 * kMostGrownRunBytes;
  if (ABSL_PREDICT_TRUE(PerturbByte() == 0) && !is_copied) {
    if (Huge* huge = huge_blocks.MoveIn(run->start, run->bytes(), bytes, filling,
                                        run->has_huge_pages)) {
      huge->has_stale_pages = !run->zeroed;
      NoteHuge(huge);
      run->arena()->DeallocateMovedOut(run);
      RelievePressure();
      return huge->start;
    }
  }
  // The system may have no such call, or no memory.
  Huge* huge = AllocateHuge(bytes, kMinAlignmentBytes, filling);
  if (ABSL_PREDICT_FALSE(huge == nullptr) && PurgeForRetry(bytes)) {
    huge = AllocateHuge(bytes, kMinAlignmentBytes, filling);
  }
  if (!run->zeroed && filling == Filling::kFromLowEnd &&
      (huge == nullptr || huge->has_stale_pages)) {
    filling_history.TakeBack(bytes);
  }
  if (huge == nullptr) return nullptr;
  memcpy(Perturb(huge->start, bytes), run->start, run->bytes());
  FreeOutgrown(run->start);
  RelievePressure();
  return huge->start;
}

// Whether `run` has, or could be made to have, room for `bytes` in its place.
bool ResizeRun(Run* run, size_t bytes) {
  const size_t pages = PagesFor(MediumBytes(bytes));
  if (pages <= run->pages && run->bytes() <= MostMediumBytes(bytes)) return true;
  if (pages > run->pages) {
    return PagesFor(bytes) <= run->pages ||
           ThreadCache::TryGrowRun(run, PagesFor(bytes), pages) != 0;
  }
  run->arena()->Shrink(run, pages);
  // Not when there is no memory for a record. A block that is larger than its
  // last realloc() said would be one that its sized free does not fit.
  return pages == run->pages;
}

// Whether a run of which realloc() leaves less than half is to be moved. A buffer that was
// allocated by a guess is cut to what came, and the next by the same guess: of all that is
// cut off in place, none has room for it, while the whole run serves again. But not a buffer
// that grows and shrinks in turn, nor where much is to be copied, or pages that were not
// touched, nor where memory is short, since both are there for a moment.
bool IsMovedToShrink(const Run* run, size_t bytes) {
  return MediumBytes(bytes) * 2 < run->bytes() && bytes <= kMostShrunkBytes &&
         !run->has_grown &&
         memory_limits.HasRoomFor(bytes + Arena::kLargestSegmentBytes) &&
         OsPages().IsMostlyResident(run->start, RoundUp(bytes, PageBytes()));
}

// Moves it; nullptr, with nothing changed, where there is no room at hand.
ABSL_ATTRIBUTE_NOINLINE void* MoveShrunk(Run* run, size_t bytes) {
  void* moved = TryTakeAtHand(bytes);
  if (moved == nullptr && bytes > kSmallMaxBytes) {
    moved = TryAllocateLarge(bytes, kMinAlignmentBytes).start;
  } else if (moved == nullptr && ThreadCache::IsOnFastPath(bytes)) {
    moved = ThreadCache::AllocateFast(bytes);
  }
  if (moved == nullptr) return nullptr;
  CopyToNew(moved, run->start, bytes);
  Deallocate(run->start);
  StartMaintenanceIfWanted();
  return moved;
}

void* ReallocateInSlab(void* p, size_t bytes) {
  const Slab* const slab = Slab::Of(p);
  CheckIsBlock(kRealloc, slab, p);
  if (bytes <= kSmallMaxBytes && ClassOf(bytes) == slab->size_class()) return p;
  if (bytes > slab->block_bytes() && slab->block_bytes() > kMostKeptOutgrownBytes) {
    return MoveGrown(p, slab->block_bytes(), bytes);
  }
  return Move(p, slab->block_bytes(), bytes);
}

void* ReallocateRun(void* p, size_t bytes) {
  Run* const run = RunAt(kRealloc, p);
  if (bytes > kSlabsOnlyMaxBytes && ServedByArena(bytes)) {
    if (IsMovedToShrink(run, bytes)) {
      if (void* const moved = MoveShrunk(run, bytes)) return moved;
    }
    if (ResizeRun(run, bytes)) {
      StartMaintenanceIfWanted();
      return p;
    }
  }
  if (bytes <= run->bytes()) return Move(p, run->bytes(), bytes);
  if (bytes > kMostGrownRunBytes || !ServedByArena(bytes)) return MoveToHuge(run, bytes);
  return MoveGrown(p, run->bytes(), bytes);
}

void* ReallocateHuge(void* p, size_t bytes) {
  Huge* const huge = HugeAt(kRealloc, p);
  if (bytes > PTRDIFF_MAX) return nullptr;
  // Down to half of what would make it huge, so that a block whose size
  // varies about the threshold is not copied each time.
  if (bytes < huge->bytes && bytes * 2 <= kMostGrownRunBytes &&
      ServedByArena(bytes * 2)) {
    return Move(p, huge->bytes, bytes);
  }
  return ABSL_PREDICT_TRUE(ResizeHuge(huge, bytes)) ? huge->start
                                                    : CopyHuge(huge, bytes);
}

// Out of line, or Reallocate() would save registers for it before it has looked
// at the block.
ABSL_ATTRIBUTE_NOINLINE void* ReallocateOther(void* p, size_t bytes) {
  switch (RoomOf(PageMap::TagOf(p))) {
    case Room::kSlab:
      return ReallocateInSlab(p, bytes);
    case Room::kRun:
      return ReallocateRun(p, bytes);
    case Room::kHuge:
      return ReallocateHuge(p, bytes);
    case Room::kNone:
      break;
  }
  ReportWildPointer(kRealloc, p);
}

}  // namespace

void* Reallocate(void* p, size_t bytes) {
  if (Magazine* magazine = ThreadCache::WarmMagazineOf(p)) {
    const size_t old_bytes = magazine->BlockBytesWhenWarm();
    if (ABSL_PREDICT_TRUE(IsWholeBlock(p, old_bytes))) {
      if (bytes <= kSmallMaxBytes && magazine->ServesRequest(bytes)) return p;
      return MoveOwn(magazine, p, old_bytes, bytes);
    }
  }
  return ReallocateOther(p, bytes);
}

size_t TryExpand(void* p, size_t least_bytes, size_t most_bytes) {
  constexpr char kCall[] = "try_expand";
  if (least_bytes > PTRDIFF_MAX) return 0;
  most_bytes = std::min(most_bytes, size_t{PTRDIFF_MAX});
  size_t usable = 0;
  size_t grown = 0;
  switch (RoomOf(PageMap::TagOf(p))) {
    case Room::kSlab:
      usable = UsableBytesFor(kCall, p);
      break;
    case Room::kRun: {
      Run* run = RunAt(kCall, p);
      usable = run->bytes();
      if (most_bytes <= usable) break;
      grown = PageBytes() *
              ThreadCache::TryGrowRun(
                  run, std::max<size_t>(PagesFor(least_bytes), run->pages),
                  PagesFor(most_bytes));
      break;
    }
    case Room::kHuge: {
      Huge* huge = HugeAt(kCall, p);
      usable = huge->bytes;
      if (most_bytes <= usable) break;
      grown = huge_blocks.TryGrow(huge, std::max(least_bytes, usable),
                                  most_bytes);
      break;
    }
    case Room::kNone:
      ReportWildPointer(kCall, p);
  }
  RelievePressure();
  if (grown != 0) return grown;
  return usable >= least_bytes ? usable : 0;
}

}  // namespace quarry
