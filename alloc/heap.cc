#include "alloc/heap.h"

#include <string.h>

#include <algorithm>
#include <bit>

#include "alloc/large_blocks.h"
#include "alloc/options.h"
#include "alloc/perturb.h"
#include "alloc/rooms.h"
#include "alloc/upkeep.h"
#include "arena/filling.h"
#include "arena/huge.h"
#include "arena/maintenance_signal.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "tcache/maintenance.h"
#include "tcache/remote_free.h"
#include "tcache/thread_life.h"

namespace quarry {
namespace {

// Smaller blocks are written to with zeros faster than the system is asked which
// of their pages are resident.
constexpr size_t kLeastLookedInto = size_t{1} << 20;

constexpr char kSizedFree[] = "sized free";

void* AllocateBlock(SizeClass size_class) {
  void* block = ThreadCache::Allocate(size_class);
  if (ABSL_PREDICT_FALSE(block == nullptr) &&
      PurgeForRetry(BlockBytes(size_class))) {
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

}  // namespace

void* AllocateSlow(size_t bytes) {
  // Most come for a refill, where neither options nor perturbation are to be asked for.
  if (ABSL_PREDICT_TRUE(ThreadCache::IsOnFastPath(bytes))) {
    void* block = ThreadCache::AllocateFast(bytes);
    if (ABSL_PREDICT_FALSE(block == nullptr)) {
      return PurgeForRetry(bytes)
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
    void* block = TryTakeAtHand(bytes);
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
  if (ABSL_PREDICT_FALSE(ThreadCache::IsLastPushed(tag, p))) ReportHeldTwice(p);
  if (ThreadCache::TryKeepForeign(p, block)) return;
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
  // As TryPopAligned() has it, where no block is aligned to less.
  if (alignment <= kMinAlignmentBytes && bytes > kEvenMaxBytes) {
    return DeallocateSized(p, bytes);
  }
  if (p == nullptr) return;
  // As memalign() and aligned_alloc() take it: 0, too.
  if (alignment <= kSmallMaxBytes) alignment = std::bit_ceil(alignment);
  const SizeClass size_class = ClassOf(bytes, alignment);
  const Tag tag = PageMap::TagOf(p);
  const size_t usable = UsableBytesFor(kSizedFree, p);
  const bool is_of_its_class =
      size_class != kNoClass && (tag & (kOwnerUnit - 1)) == MagazineOffset(size_class);
  const bool fits =
      RoomOf(tag) == Room::kSlab
          // Or it was asked for as one that is aligned to 8 only.
          ? is_of_its_class || (alignment <= BlockBytes(kEightByteClass) &&
                                BlockServes(usable, bytes))
          : (size_class == kNoClass || bytes > kSlabsOnlyMaxBytes) &&
                LargeBlockServes(p, usable, bytes);
  if (ABSL_PREDICT_FALSE(!fits)) RefuseSize(p, bytes, usable);
  Deallocate(p);
}

size_t UsableBytesSlow(const void* p) {
  if (p == nullptr) return 0;
  return UsableBytesFor("usable size", p);
}

size_t GoodBytes(size_t bytes) {
  if (bytes <= kSmallMaxBytes) return BlockBytes(ClassOf(bytes));
  if (bytes > PTRDIFF_MAX) return bytes;
  // A kept mapping may serve in place of a page run of so many: see TakeKept().
  return ServedByArena(bytes) && bytes < HugeBlocks::kLeastTakenBytes
             ? MediumBytes(bytes)
             : RoundUp(bytes, PageBytes());
}

void ApplyPerturbation() {
  if (PerturbByte() != 0) LeaveFastPath();
}

}  // namespace quarry
