#include "alloc/heap.h"

#include <string.h>

#include <algorithm>
#include <bit>

#include "alloc/options.h"
#include "arena/filling.h"
#include "arena/huge.h"
#include "arena/limits.h"
#include "arena/maintenance_signal.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "tcache/cache_registry.h"
#include "tcache/maintenance.h"
#include "tcache/orphans.h"
#include "tcache/remote_free.h"
#include "tcache/thread_life.h"

namespace quarry {
namespace {

// Blocks above this are huge whatever the threshold: one free of a larger run would leave
// more dirty than it purges.
constexpr size_t kMostRunBytes = Arena::kMostCapPurgeBytes;
static_assert(kMostRunBytes <= Arena::kLargestSegmentBytes);

// A block that realloc() makes larger than this becomes huge whatever the
// threshold: what grows will grow again, and a huge block does so without a
// copy.
constexpr size_t kMostGrownRunBytes = size_t{4} << 20;

// To fewer bytes of fresh pages a copy costs no more than the system call before it saves.
constexpr size_t kLeastPopulated = size_t{16} << 10;

// Smaller blocks are written to with zeros faster than the system is asked which
// of their pages are resident.
constexpr size_t kLeastLookedInto = size_t{1} << 20;

uint8_t PerturbByte() {
  return settings.perturb_byte.load(std::memory_order_relaxed);
}

void* Perturb(void* block, size_t bytes) {
  const uint8_t byte = PerturbByte();
  if (ABSL_PREDICT_FALSE(byte != 0) && block != nullptr) {
    memset(block, byte ^ 0xff, bytes);
  }
  return block;
}

bool ServedByArena(size_t bytes) {
  return bytes <= kMostRunBytes &&
         bytes < std::max(
                     settings.mmap_threshold_bytes.load(std::memory_order_relaxed),
                     kSmallMaxBytes + 1);
}

Arena& ArenaOfThread() {
  ThreadCache* cache = CurrentCache();
  return cache != nullptr ? *cache->arena() : ArenaAt(0);
}

constexpr char kSizedFree[] = "sized free";

// What a pointer is, as its tag says.
enum class Room { kNone, kSlab, kRun, kHuge };

Room RoomOf(Tag tag) {
  if (tag == kNoTag) return Room::kNone;
  if (tag == kRunTag) return Room::kRun;
  if (tag == kHugeTag) return Room::kHuge;
  return Room::kSlab;
}

struct Large {
  void* start;
  bool zeroed;
};

// What filling_history is told of a block that is new, or has grown.
void NoteHuge(const Huge* huge) {
  if (huge->has_stale_pages || huge->has_huge_pages) return;
  filling_history.NoteAllocated(huge->start, huge->bytes);
}

Huge* AllocateHuge(size_t bytes, size_t alignment, Filling filling) {
  Huge* const huge = huge_blocks.Allocate(bytes, alignment, filling);
  if (huge != nullptr) NoteHuge(huge);
  return huge;
}

// The same, and what it tells, of a run of which no page is resident, as far as is known.
ABSL_ATTRIBUTE_NOINLINE void NoteFreshRun(Run* run) {
  if (filling_history.Expect(run->bytes()) == Filling::kFromLowEnd) {
    run->arena()->PreferHugePages(run);
  } else {
    filling_history.NoteAllocated(run->start, run->bytes());
  }
}

Large TryAllocateLarge(size_t bytes, size_t alignment) {
  if (ABSL_PREDICT_FALSE(bytes > PTRDIFF_MAX || alignment > PTRDIFF_MAX)) {
    return {};
  }
  if (ServedByArena(std::max(bytes, alignment))) {
    Run* run;
    if (ABSL_PREDICT_TRUE(alignment <= PageBytes() && bytes > kSlabsOnlyMaxBytes)) {
      if (thread_state.cache->CachedRunBytes() != 0) {
        if (void* const kept = ThreadCache::TakeRun(bytes)) return {kept, false};
      }
      thread_state.cache->MakeRoomForRun(bytes);
      run = ArenaOfThread().Allocate(PagesFor(MediumBytes(bytes)), PageBytes());
    } else {
      // No more than the needed pages: what is aligned widely seldom fits
      // another request.
      const size_t pages = std::max<size_t>(PagesFor(bytes), 1);
      run = ArenaOfThread().Allocate(pages, alignment);
    }
    if (run == nullptr) return {};
    if (ABSL_PREDICT_FALSE(run->bytes() >= FillingHistory::kLeastToldBytes) &&
        run->is_fresh) {
      NoteFreshRun(run);
    }
    return {run->start, run->zeroed};
  }
  const Filling filling = filling_history.Expect(bytes);
  Huge* const huge = AllocateHuge(std::max<size_t>(bytes, 1), alignment, filling);
  if (filling == Filling::kFromLowEnd &&
      (huge == nullptr || huge->has_stale_pages)) {
    filling_history.TakeBack(bytes);
  }
  if (huge == nullptr) return {};
  return {huge->start, huge->zeroed};
}

// What the heap keeps for later may be what the system will not give, or what a
// limit has no room beside, so it goes back before a request fails; but not for
// a request that is larger than all that could come free.
bool ReleasedFor(size_t bytes) {
  const size_t most_bytes =
      std::max(OsPages().statistics().mapped_bytes,
               settings.hard_limit_bytes.load(std::memory_order_relaxed));
  if (bytes > most_bytes) return false;
  // Whatever comes of it: the maintenance thread may have been before us.
  static_cast<void>(ReleaseMemory(0));
  return true;
}

// To be called where something was mapped and no lock is held.
void RelievePressure() {
  if (ABSL_PREDICT_TRUE(!PressureIsDue())) return;
  memory_limits.Relieve([] { static_cast<void>(ReleaseMemory(0)); });
}

// What each slow path of an allocation ends with.
void SeeToUpkeep() {
  RelievePressure();
  StartMaintenanceIfWanted();
}

Large AllocateLarge(size_t bytes, size_t alignment) {
  Large large = TryAllocateLarge(bytes, alignment);
  if (ABSL_PREDICT_FALSE(large.start == nullptr) && ReleasedFor(bytes)) {
    large = TryAllocateLarge(bytes, alignment);
  }
  SeeToUpkeep();
  return large;
}

void* AllocateBlock(SizeClass size_class) {
  void* block = ThreadCache::Allocate(size_class);
  if (ABSL_PREDICT_FALSE(block == nullptr) &&
      ReleasedFor(BlockBytes(size_class))) {
    block = ThreadCache::Allocate(size_class);
  }
  SeeToUpkeep();
  return block;
}

// The same for `bytes` at a multiple of `alignment`, which the class has; a page run where
// no whole slab is to be had.
void* AllocateSmall(SizeClass size_class, size_t bytes, size_t alignment) {
  void* block = AllocateBlock(size_class);
  if (ABSL_PREDICT_FALSE(block == nullptr) && bytes > kSlabsOnlyMaxBytes) {
    block = AllocateLarge(bytes, alignment).start;
  }
  return block;
}

// Aborts with what can be said about `p`, which is no block in use.
[[noreturn]] void ReportWildPointer(const char* call, const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(void*) != 0) {
    ReportMisalignedPointer(call, p);
  }
  if (const Run* run = Arena::RunContaining(p)) {
    if (!run->IsInUse()) {
      ReportFreedLargeBlock(call, p);
    }
    ReportInteriorPointer(call, p, run->start, run->bytes());
  }
  if (const Huge* huge = huge_blocks.Containing(p)) {
    if (!huge->in_use.load(std::memory_order_relaxed)) {
      ReportFreedLargeBlock(call, p);
    }
    ReportInteriorPointer(call, p, huge->start, huge->bytes);
  }
  if (PageMap::TagOf(p) == kNoTag) ReportUnmanagedPointer(call, p);
  ReportForeignPointer(call, p);
}

// The run or huge block that starts at `p` and is in use; aborts if there is
// none.
Run* RunAt(const char* call, const void* p) {
  Run* run = Arena::RunOf(p);
  if (ABSL_PREDICT_FALSE(run == nullptr)) ReportWildPointer(call, p);
  return run;
}

Huge* HugeAt(const char* call, const void* p) {
  Huge* huge = HugeBlocks::Of(p);
  if (ABSL_PREDICT_FALSE(huge == nullptr)) ReportWildPointer(call, p);
  return huge;
}

size_t UsableBytesFor(const char* call, const void* p) {
  switch (RoomOf(PageMap::TagOf(p))) {
    case Room::kSlab: {
      const Slab* slab = Slab::Of(p);
      CheckIsBlock(call, slab, p);
      return slab->block_bytes();
    }
    case Room::kRun:
      return RunAt(call, p)->bytes();
    case Room::kHuge:
      return HugeAt(call, p)->bytes;
    case Room::kNone:
      break;
  }
  ReportWildPointer(call, p);
}

// Whether a slab's block of `usable` bytes is what a request for `bytes` got.
bool BlockServes(size_t usable, size_t bytes) {
  if (bytes > kSmallMaxBytes) return false;
  return usable == BlockBytes(ClassOf(bytes)) ||
         (usable == BlockBytes(kEightByteClass) && bytes <= usable);
}

// The same for a run or huge block, which an alignment may have put there
// however few bytes were asked for.
bool LargeBlockServes(const void* p, size_t usable, size_t bytes) {
  const size_t needed = RoundUp(std::max<size_t>(bytes, 1), PageBytes());
  // A huge block may be larger than was asked for: kept mappings serve again.
  const size_t most = RoomOf(PageMap::TagOf(p)) == Room::kHuge
                          ? needed + needed / 8
                          : MostMediumBytes(needed);
  if (usable > most) return false;
  if (needed <= usable) return true;
  // `bytes` may be GoodBytes() of what was asked for, which are those of a slab's block.
  return usable <= kSmallMaxBytes && bytes <= BlockBytes(ClassOf(usable));
}

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
    Run* const run = RunAt("realloc", p);
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
  const Filling filling = bytes > huge->bytes && !huge->has_huge_pages
                              ? filling_history.Observe(huge->start, huge->bytes)
                              : Filling::kUnknown;
  bool resized = huge_blocks.Resize(huge, bytes, filling);
  if (ABSL_PREDICT_FALSE(!resized) && ReleasedFor(bytes - huge->bytes)) {
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
  const Filling filling = filling_history.Observe(run->start, run->bytes());
  // What is filled and not large is copied to huge pages: its own are small ones, and who
  // has the run next would have to fault them again.
  const bool is_copied = filling == Filling::kFromLowEnd && !run->has_huge_pages &&
                         run->bytes() <= 2 * kMostGrownRunBytes;
  if (ABSL_PREDICT_TRUE(PerturbByte() == 0) && !is_copied) {
    if (Huge* huge = huge_blocks.MoveIn(run->start, run->bytes(), bytes, filling,
                                        run->has_huge_pages)) {
      NoteHuge(huge);
      run->arena()->DeallocateMovedOut(run);
      RelievePressure();
      return huge->start;
    }
  }
  // The system may have no such call, or no memory.
  Huge* huge = AllocateHuge(bytes, kMinAlignmentBytes, filling);
  if (ABSL_PREDICT_FALSE(huge == nullptr) && ReleasedFor(bytes)) {
    huge = AllocateHuge(bytes, kMinAlignmentBytes, filling);
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

// Gives `p`, whose tag is `tag`, back to the room that it came from.
void ReturnToRoom(void* p, Tag tag) {
  constexpr char kCall[] = "free";
  const Room room = RoomOf(tag);
  if (ABSL_PREDICT_TRUE(room == Room::kSlab)) {
    Slab* slab = Slab::Of(p);
    if (ABSL_PREDICT_FALSE(PerturbByte() != 0)) {
      CheckIsBlock(kCall, slab, p);
      memset(p, PerturbByte(), slab->block_bytes());
    }
    return ThreadCache::Free(slab, p);
  }
  if (room == Room::kRun) {
    Run* run = RunAt(kCall, p);
    if (run->zeroed) filling_history.Observe(run->start, run->bytes());
    if (ABSL_PREDICT_FALSE(PerturbByte() != 0)) {
      memset(p, PerturbByte(), run->bytes());
    }
    return ThreadCache::FreeRun(run);
  }
  if (room == Room::kHuge) {
    Huge* const huge = HugeAt(kCall, p);
    // What its last owner filled is filled.
    return huge_blocks.Deallocate(
        huge, huge->has_stale_pages
                  ? Filling::kFromLowEnd
                  : filling_history.Observe(huge->start, huge->bytes));
  }
  ReportWildPointer(kCall, p);
}

ABSL_ATTRIBUTE_NOINLINE void FlushNotes(const void* caller) {
  thread_state.cache->FlushNotes();
  StartMaintenanceIfWanted(caller);
}

// Not StartMaintenanceIfWanted(), here and in FreeRun(): where there is no thread, these
// are no paths on which to do its work.
ABSL_ATTRIBUTE_NOINLINE void SeeToKeptRuns(const void* caller) {
  maintenance_signal.NoteKept(thread_state.cache->CachedRunBytes());
  if (maintenance_signal.IsWanted()) MaintainOnSlowPath(caller);
}

ABSL_ATTRIBUTE_NOINLINE void FreeRun(void* p, const void* caller) {
  if (ABSL_PREDICT_FALSE(!ThreadCache::TryKeepRun(p))) {
    return DeallocateUncommon(p, caller);
  }
  if (ABSL_PREDICT_FALSE(maintenance_signal.IsWantedFor(
          thread_state.cache->CachedRunBytes()))) {
    SeeToKeptRuns(caller);
  }
}

// In a thread that has no cache, or has left the fast path: to it, its own blocks
// have the tag of another thread.
ABSL_ATTRIBUTE_NOINLINE void FreeWithoutTag(void* p, RemoteBlock block,
                                            const void* caller) {
  if (thread_state.cache != &no_cache || PerturbByte() != 0) {
    return DeallocateUncommon(p, caller);
  }
  if (FreeRemotelyWithoutCache(p, block, !MayBeLoader(caller))) {
    StartMaintenanceIfWanted(caller);
  }
}

// A block of another thread's slab.
ABSL_ATTRIBUTE_NOINLINE void FreeRemoteBlock(void* p, RemoteBlock block,
                                             const void* caller) {
  if (ABSL_PREDICT_FALSE(thread_state.tag == 0)) {
    return FreeWithoutTag(p, block, caller);
  }
  if (FreeRemotelyLater(p, block)) StartMaintenanceIfWanted(caller);
}

ABSL_ATTRIBUTE_NOINLINE void FlushRemoteBatch(const void* caller) {
  if (FlushRemoteFrees(thread_state.cache)) StartMaintenanceIfWanted(caller);
}

// Whether a run in use starts at `p`, of which HomeTagOf() told kRunTag, that a request
// for `bytes` > kSlabsOnlyMaxBytes may have got.
bool RunServes(const void* p, size_t bytes) {
  const Run* const run =
      Arena::RunStartingAt(p, PageMap::HomeDescriptorOf(p));
  return run != nullptr && bytes <= run->bytes() &&
         run->bytes() <= MostMediumBytes(bytes);
}

void RefuseSize(const void* p, size_t bytes, size_t usable) {
  if (settings.check_sizes.load(std::memory_order_relaxed)) {
    ReportSizeMismatch(p, bytes, usable);
  }
}

// A block that is not of the class for `bytes`, or of none.
ABSL_ATTRIBUTE_NOINLINE void DeallocateSizedUncommon(void* p, size_t bytes) {
  if (p == nullptr) return;
  const size_t usable = UsableBytesFor(kSizedFree, p);
  const bool fits = RoomOf(PageMap::TagOf(p)) == Room::kSlab
                        ? BlockServes(usable, bytes)
                        : LargeBlockServes(p, usable, bytes);
  if (ABSL_PREDICT_FALSE(!fits)) RefuseSize(p, bytes, usable);
  Deallocate(p);
}

// Out of line, or Reallocate() would save registers for it before it has looked
// at the block.
ABSL_ATTRIBUTE_NOINLINE void* ReallocateOther(void* p, size_t bytes) {
  // Static: an array on the stack would have the stack guarded.
  static constexpr char kCall[] = "realloc";
  switch (RoomOf(PageMap::TagOf(p))) {
    case Room::kSlab: {
      const Slab* slab = Slab::Of(p);
      CheckIsBlock(kCall, slab, p);
      if (bytes <= kSmallMaxBytes && ClassOf(bytes) == slab->size_class()) {
        return p;
      }
      if (bytes > slab->block_bytes() && slab->block_bytes() > kMostKeptOutgrownBytes) {
        return MoveGrown(p, slab->block_bytes(), bytes);
      }
      return Move(p, slab->block_bytes(), bytes);
    }
    case Room::kRun: {
      Run* run = RunAt(kCall, p);
      if (bytes > kSlabsOnlyMaxBytes && ServedByArena(bytes) &&
          ResizeRun(run, bytes)) {
        StartMaintenanceIfWanted();
        return p;
      }
      if (bytes > run->bytes() &&
          (bytes > kMostGrownRunBytes || !ServedByArena(bytes))) {
        return MoveToHuge(run, bytes);
      }
      return bytes > run->bytes() ? MoveGrown(p, run->bytes(), bytes)
                                  : Move(p, run->bytes(), bytes);
    }
    case Room::kHuge: {
      Huge* huge = HugeAt(kCall, p);
      // Down to half of what would make it huge, so that a block whose size
      // varies about the threshold is not copied each time.
      if (bytes > PTRDIFF_MAX) return nullptr;
      if (bytes >= huge->bytes || bytes * 2 > kMostGrownRunBytes ||
          !ServedByArena(bytes * 2)) {
        return ABSL_PREDICT_TRUE(ResizeHuge(huge, bytes)) ? huge->start
                                                          : CopyHuge(huge, bytes);
      }
      return Move(p, huge->bytes, bytes);
    }
    case Room::kNone:
      break;
  }
  ReportWildPointer(kCall, p);
}

}  // namespace

void* AllocateSlow(size_t bytes) {
  // Most come for a refill, where neither options nor perturbation are to be asked for.
  if (ABSL_PREDICT_TRUE(ThreadCache::IsOnFastPath(bytes))) {
    void* block = ThreadCache::AllocateFast(bytes);
    if (ABSL_PREDICT_FALSE(block == nullptr)) {
      return ReleasedFor(bytes)
                 ? AllocateSmall(ClassOf(bytes), bytes, kMinAlignmentBytes)
                 : nullptr;
    }
    SeeToUpkeep();
    return block;
  }
  if (ABSL_PREDICT_FALSE(thread_state.cache == &no_cache)) LoadOptions();
  void* block = bytes <= kSmallMaxBytes
                    ? AllocateSmall(ClassOf(bytes), bytes, kMinAlignmentBytes)
                    : AllocateLarge(bytes, kMinAlignmentBytes).start;
  return Perturb(block, bytes);
}

void* AllocateZeroed(size_t bytes) {
  if (ABSL_PREDICT_TRUE(bytes <= kSlabsOnlyMaxBytes)) {
    void* block = TryPop(bytes);
    if (block == nullptr) block = TryTakeAtHand(bytes);
    if (ABSL_PREDICT_FALSE(block == nullptr)) {
      block = AllocateSlow(bytes);
      if (block == nullptr) return nullptr;
    }
    return memset(block, 0, bytes);
  }
  if (ABSL_PREDICT_FALSE(thread_state.cache == &no_cache)) LoadOptions();
  const Large large = AllocateLarge(bytes, kMinAlignmentBytes);
  if (large.start == nullptr || large.zeroed) return large.start;
  // Where little of a block was touched, little of it is dirty.
  if (bytes < kLeastLookedInto) return memset(large.start, 0, bytes);
  OsPages().MakeZero(large.start, RoundUp(bytes, PageBytes()));
  // What is not zero when it is freed will be this owner's.
  if (Huge* const huge = HugeBlocks::Of(large.start)) huge->has_stale_pages = false;
  return large.start;
}

void* AllocateAligned(size_t bytes, size_t alignment) {
  const SizeClass size_class = ClassOf(bytes, alignment);
  if (size_class != kNoClass) {
    if (void* block = ThreadCache::TryTake(size_class)) return block;
  }
  if (ABSL_PREDICT_FALSE(thread_state.cache == &no_cache)) LoadOptions();
  void* block = size_class != kNoClass
                    ? AllocateSmall(size_class, bytes, alignment)
                    : AllocateLarge(bytes, alignment).start;
  return Perturb(block, bytes);
}

void* AllocateUnaligned8(size_t bytes) {
  if (bytes > BlockBytes(kEightByteClass)) {
    void* block = TryPop(bytes);
    return block != nullptr ? block : AllocateSlow(bytes);
  }
  if (ABSL_PREDICT_FALSE(thread_state.cache == &no_cache)) LoadOptions();
  return Perturb(AllocateBlock(kEightByteClass), bytes);
}

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
  if (grown != 0) return grown;
  return usable >= least_bytes ? usable : 0;
}

void DeallocateUncommon(void* p, const void* caller) {
  if (p == nullptr) return;
  ReturnToRoom(p, PageMap::TagOf(p));
  StartMaintenanceIfWanted(caller);
}

// What is common, in functions that have few registers to save for it.
void DeallocateForeign(void* p, Tag offset, const void* caller) {
  const Tag tag = ThreadCache::TagOfOffset(offset);
  if (ABSL_PREDICT_FALSE(tag >= kNobody)) {
    if (tag == kRunTag) return FreeRun(p, caller);
    return DeallocateUncommon(p, caller);
  }
  RemoteBlock block;
  if (ABSL_PREDICT_FALSE(!RemoteBlock::Find(p, tag, &block))) {
    return DeallocateUncommon(p, caller);
  }
  RemoteBatch& batch = thread_state.cache->remote_batch();
  if (!batch.TryAddToWord(block)) return FreeRemoteBlock(p, block, caller);
  if (ABSL_PREDICT_FALSE(batch.IsFull())) return FlushRemoteBatch(caller);
}

void DeallocateNotPushed(void* p, const Magazine* magazine,
                         const void* caller) {
  bool notes_are_full;
  if (ABSL_PREDICT_FALSE(
          !ThreadCache::TryPushCold(magazine, p, &notes_are_full))) {
    return DeallocateUncommon(p, caller);
  }
  if (ABSL_PREDICT_FALSE(notes_are_full)) return FlushNotes(caller);
}

void DeallocateSizedSlow(void* p, size_t bytes) {
  Tag tag;
  if (ABSL_PREDICT_TRUE(PageMap::HomeTagOf(p, &tag) &&
                        (tag == kRunTag
                             ? bytes > kSlabsOnlyMaxBytes && RunServes(p, bytes)
                             : bytes <= kSmallMaxBytes &&
                                   (tag & (kOwnerUnit - 1)) ==
                                       ThreadCache::MagazineOffsetFor(bytes)))) {
    return DeallocateForeign(p, ThreadCache::OffsetOf(tag),
                             __builtin_return_address(0));
  }
  return DeallocateSizedUncommon(p, bytes);
}

void DeallocateSizedNotPushed(void* p, size_t bytes, const Magazine* magazine) {
  bool notes_are_full;
  // Of a cold class, as a rule.
  if (ABSL_PREDICT_FALSE(!ThreadCache::TryPushColdSized(magazine, p, bytes,
                                                        &notes_are_full))) {
    return DeallocateSizedUncommon(p, bytes);
  }
  if (ABSL_PREDICT_FALSE(notes_are_full)) {
    return FlushNotes(__builtin_return_address(0));
  }
}

void DeallocateAlignedSizedSlow(void* p, size_t bytes, size_t alignment) {
  if (p == nullptr) return;
  // As memalign() and aligned_alloc() take it: 0, too.
  if (alignment <= kSmallMaxBytes) alignment = std::bit_ceil(alignment);
  const SizeClass size_class = ClassOf(bytes, alignment);
  const Tag tag = PageMap::TagOf(p);
  const bool fits =
      RoomOf(tag) == Room::kSlab
          ? size_class != kNoClass &&
                (tag & (kOwnerUnit - 1)) == MagazineOffset(size_class)
          : (size_class == kNoClass || bytes > kSlabsOnlyMaxBytes) &&
                LargeBlockServes(p, UsableBytesFor(kSizedFree, p), bytes);
  if (ABSL_PREDICT_FALSE(!fits)) {
    RefuseSize(p, bytes, UsableBytesFor(kSizedFree, p));
  }
  Deallocate(p);
}

size_t UsableBytesSlow(const void* p) {
  if (p == nullptr) return 0;
  return UsableBytesFor("usable size", p);
}

size_t GoodBytes(size_t bytes) {
  if (bytes <= kSmallMaxBytes) return BlockBytes(ClassOf(bytes));
  if (bytes > PTRDIFF_MAX) return bytes;
  return ServedByArena(bytes) ? MediumBytes(bytes)
                              : RoundUp(bytes, PageBytes());
}

void FlushThread() {
  ThreadCache::FlushThread();
  // Slabs may have free pages now.
  maintenance_signal.NoteWork();
  StartMaintenanceIfWanted();
}

size_t ReleaseMemory(size_t pad_bytes) {
  ThreadCache::FlushThread();
  static_cast<void>(cache_registry.CloseParked(/*all=*/true));
  // What other threads keep, but for their magazines and remote batches.
  bool gave_back = false;
  const size_t purged_before = OsPages().statistics().purged_bytes;
  cache_registry.ForEachUnlocked([&](ThreadCache* cache) {
    static_cast<void>(cache->Tidy(true, &gave_back, SIZE_MAX));
  });
  for (size_t i = 0; i < ArenasMade(); ++i) {
    static_cast<void>(OrphansOf(i).Tidy(true, &gave_back, SIZE_MAX));
  }
  // Pages of slabs; what arenas purge meanwhile, in other threads, as well.
  size_t released = OsPages().statistics().purged_bytes - purged_before;
  released += huge_blocks.Purge();
  Arena& own = ArenaOfThread();
  for (size_t i = 0; i < ArenasMade(); ++i) {
    Arena& arena = ArenaAt(i);
    released += arena.Purge(&arena == &own ? pad_bytes : 0);
  }
  return released;
}

void ApplyPerturbation() {
  if (PerturbByte() != 0) LeaveFastPath();
}

}  // namespace quarry
