#include "arena/huge.h"

#include <algorithm>
#include <cstdint>
#include <new>

#include "arena/clock.h"
#include "arena/limits.h"
#include "arena/maintenance_signal.h"
#include "arena/page_map.h"
#include "arena/report.h"
#include "arena/settings.h"

namespace quarry {
namespace {

bool IsInUse(const Huge* huge) {
  return huge->in_use.load(std::memory_order_relaxed);
}

bool MayBeKept() {
  return settings.decay_ms.load(std::memory_order_relaxed) != 0 &&
         !AboveSoftLimit();
}

// Of a place that pages are moved to. The system moves a whole table of pages at
// once from one address to another where both are the same within what it covers,
// and else entry by entry, touched or not.
size_t PlaceAlignment(size_t bytes, size_t alignment) {
  return bytes < kHugePageBytes ? alignment : std::max(alignment, kHugePageBytes);
}

// Whether the threshold was raised over `bytes`. Two threads that free at once
// may leave the lower of two thresholds: the next free raises it again.
bool RaisesThreshold(size_t bytes) {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  if (bytes > HugeBlocks::kLargestAdaptedBytes ||
      bytes < settings.mmap_threshold_bytes.load(kRelaxed) ||
      !settings.mmap_threshold_adapts.load(kRelaxed)) {
    return false;
  }
  settings.mmap_threshold_bytes.store(bytes + PageBytes(), kRelaxed);
  return true;
}

}  // namespace

Huge* HugeBlocks::Allocate(size_t bytes, size_t alignment, Filling filling) {
  QUARRY_DCHECK(bytes > 0);
  if (bytes > PTRDIFF_MAX) return nullptr;
  bytes = RoundUp(bytes, PageBytes());
  alignment = std::max(alignment, kGranuleBytes);
  if (Huge* const cached = TakeCached(bytes, alignment, /*with_pages=*/false)) {
    // What is resident stays as it is.
    if (!cached->zeroed) return cached;
    AdvisePages(cached, filling);
    SeeToCached();
    return cached;
  }
  if (Huge* const fresh = MapFresh(bytes, alignment, filling)) return fresh;
  // What is kept for reuse may be what is missing.
  Purge();
  return MapFresh(bytes, alignment, filling);
}

Huge* HugeBlocks::TakeCached(size_t bytes, size_t alignment, bool with_pages) {
  LockHolder hold(lock_);
  Huge* best = nullptr;
  for (Huge* huge = cached_.newest; huge != nullptr; huge = huge->next) {
    if (huge->bytes < bytes || huge->bytes - bytes > bytes / 8) continue;
    if (!IsMultiple(huge->start, alignment) || (with_pages && huge->zeroed)) continue;
    if (best == nullptr || huge->bytes < best->bytes) best = huge;
  }
  if (best == nullptr) return nullptr;
  StopKeeping(best);
  best->alignment = alignment;
  best->has_stale_pages = !best->zeroed;
  AddLive(best);
  return best;
}

void HugeBlocks::AddLive(Huge* huge) {
  huge->in_use.store(true, std::memory_order_relaxed);
  live_.PushNewest(huge);
  NotePeak();
}

void HugeBlocks::NotePeak() {
  peak_live_bytes_ = std::max(peak_live_bytes_, live_.bytes);
}

void HugeBlocks::Keep(Huge* huge) {
  cached_.PushNewest(huge);
  keeps_any_.store(true, std::memory_order_relaxed);
}

void HugeBlocks::StopKeeping(Huge* huge) {
  cached_.Remove(huge);
  keeps_any_.store(cached_.blocks != 0, std::memory_order_relaxed);
}

Huge* HugeBlocks::MoveIn(void* start, size_t old_bytes, size_t bytes,
                         Filling filling, bool has_huge_pages) {
  QUARRY_DCHECK(old_bytes > 0 && old_bytes <= bytes);
  if (bytes > PTRDIFF_MAX) return nullptr;
  return MapFresh(RoundUp(bytes, PageBytes()), kGranuleBytes, filling, start,
                  old_bytes, has_huge_pages);
}

Huge* HugeBlocks::MapFresh(size_t bytes, size_t alignment, Filling filling,
                           void* old_start, size_t old_bytes,
                           bool has_huge_pages) {
  void* const record = metadata_.Allocate(sizeof(Huge));
  if (record == nullptr) return nullptr;
  // Huge pages begin where tables of small ones do.
  const bool begins_table = old_bytes != 0 || filling == Filling::kFromLowEnd;
  const size_t place_alignment =
      begins_table ? PlaceAlignment(bytes, alignment) : alignment;
  void* const start = old_bytes == 0 ? source_.Map(bytes, place_alignment)
                                     : source_.MapPlace(0, bytes, place_alignment);
  if (start == nullptr) {
    metadata_.Deallocate(record, sizeof(Huge));
    return nullptr;
  }
  if (!PageMap::Reserve(start, kGranuleBytes)) {
    source_.Unmap(start, bytes);
    metadata_.Deallocate(record, sizeof(Huge));
    return nullptr;
  }
  if (old_bytes > 0 && !source_.MoveOut(old_start, old_bytes, start, bytes)) {
    metadata_.Deallocate(record, sizeof(Huge));
    return nullptr;
  }
  if (settings.huge_pages.load(std::memory_order_relaxed) ==
      HugePagePolicy::kNever) {
    source_.KeepSmallPages(start, bytes);
  }
  Huge* const huge = new (record) Huge;
  huge->start = static_cast<char*>(start);
  huge->bytes = bytes;
  huge->alignment = alignment;
  huge->zeroed = old_bytes == 0;
  huge->has_huge_pages = has_huge_pages;
  AdvisePages(huge, filling);
  PageMap::Set(start, kGranuleBytes, kHugeTag, huge);
  {
    LockHolder hold(lock_);
    AddLive(huge);
  }
  SeeToCached();
  return huge;
}

void HugeBlocks::AdvisePages(Huge* huge, Filling filling) {
  const bool wants = filling == Filling::kFromLowEnd;
  if (wants == huge->has_huge_pages) return;
  huge->has_huge_pages = wants;
  // All of it, and not only whole huge pages: what has one advice is one mapping, which
  // the system moves and extends.
  if (wants) {
    source_.PreferHugePages(huge->start, huge->bytes);
  } else {
    source_.KeepSmallPages(huge->start, huge->bytes);
  }
}

void HugeBlocks::Deallocate(Huge* huge, Filling filling) {
  // calloc(1 GiB) and free in a loop: 1.6 to 4.6 us each, and 12 to 17 us when
  // the mapping was given back as well.
  const bool is_filled = filling == Filling::kFromLowEnd;
  const bool keeps_pages = huge->bytes <= kLargestUnfilledBytes ||
                           (huge->bytes <= kLargestDirtyBytes && is_filled);
  bool is_kept = MayBeKept() && !RaisesThreshold(huge->bytes);
  {
    LockHolder hold(lock_);
    if (!IsInUse(huge)) ReportFreedLargeBlock("free", huge->start);
    huge->in_use.store(false, std::memory_order_relaxed);
    live_.Remove(huge);
  }
  huge->zeroed = false;
  if (!keeps_pages) {
    // The system makes no huge page over the table of small ones, which it would keep.
    if (is_filled && !huge->has_huge_pages) is_kept = false;
    is_kept = huge->zeroed =
        is_kept && source_.PurgeToZero(huge->start, huge->bytes);
  }
  if (!is_kept) return Discard(huge);
  {
    LockHolder hold(lock_);
    huge->freed_ms = NowMs();  // Under the lock, so that the list is in order.
    Keep(huge);
  }
  maintenance_signal.NoteWork();
  SeeToCached();
}

void HugeBlocks::SeeToCached() {
  {
    LockHolder hold(lock_);
    if (!HasTooManyCached()) return;
  }
  const auto may_go = [&](const Huge*) {
    lock_.AssertHeld();
    return HasTooManyCached();
  };
  while (DiscardOldest(may_go) != 0) {
  }
}

bool HugeBlocks::HasTooManyCached() const {
  size_t dirty_bytes = 0;
  for (const Huge* huge = cached_.newest; huge != nullptr; huge = huge->next) {
    if (!huge->zeroed) dirty_bytes += huge->bytes;
  }
  return cached_.blocks > kMostCachedBlocks ||
         dirty_bytes > std::min(kMostDirtyBytes, peak_live_bytes_ - live_.bytes);
}

size_t HugeBlocks::PurgeFreedBefore(uint32_t time_ms) {
  const auto is_old = [&](const Huge* huge) {
    return IsBefore(huge->freed_ms, time_ms);
  };
  size_t purged_bytes = 0;
  while (const size_t bytes = DiscardOldest(is_old)) purged_bytes += bytes;
  return purged_bytes;
}

size_t HugeBlocks::Purge() {
  size_t dirty_bytes = 0;
  bool is_purged = false;
  const auto is_any = [&](const Huge* huge) {
    is_purged = huge->zeroed;
    return true;
  };
  while (const size_t bytes = DiscardOldest(is_any)) {
    if (!is_purged) dirty_bytes += bytes;
  }
  return dirty_bytes;
}

template <typename MayGo>
size_t HugeBlocks::DiscardOldest(MayGo may_go) {
  LockHolder one_block(purge_lock_);
  Huge* oldest;
  {
    LockHolder hold(lock_);
    oldest = cached_.oldest;
    if (oldest == nullptr || !may_go(oldest)) return 0;
    StopKeeping(oldest);
  }
  const size_t bytes = oldest->bytes;
  Discard(oldest);
  return bytes;
}

void HugeBlocks::Discard(Huge* huge) {
  // The entry goes first: once unmapped, the address may be another's.
  PageMap::Set(huge->start, kGranuleBytes, kNoTag, nullptr);
  source_.Unmap(huge->start, huge->bytes);
  metadata_.Deallocate(huge, sizeof(Huge));
}

bool HugeBlocks::Resize(Huge* huge, size_t bytes, Filling filling) {
  QUARRY_DCHECK(bytes > 0 && IsInUse(huge));
  if (bytes > PTRDIFF_MAX) return false;
  bytes = RoundUp(bytes, PageBytes());
  char* const start = huge->start;
  const size_t old_bytes = huge->bytes;
  if (bytes < old_bytes) {
    SetExtent(huge, start, bytes);
    source_.ShrinkInPlace(start, old_bytes, bytes);
    return true;
  }
  if (bytes == old_bytes) return true;
  if (source_.GrowInPlace(start, old_bytes, bytes)) {
    SetExtent(huge, start, bytes);
  } else if (!Move(huge, bytes)) {
    return false;
  }
  if (filling == Filling::kFromLowEnd) AdvisePages(huge, filling);
  return true;
}

size_t HugeBlocks::TryGrow(Huge* huge, size_t least_bytes, size_t most_bytes) {
  QUARRY_DCHECK(least_bytes <= most_bytes && IsInUse(huge));
  if (least_bytes > PTRDIFF_MAX) return 0;
  most_bytes = RoundUp(std::min<size_t>(most_bytes, PTRDIFF_MAX), PageBytes());
  least_bytes = RoundUp(least_bytes, PageBytes());
  for (const size_t bytes : {most_bytes, least_bytes}) {
    if (bytes <= huge->bytes) return huge->bytes;
    if (source_.GrowInPlace(huge->start, huge->bytes, bytes)) {
      SetExtent(huge, huge->start, bytes);
      return bytes;
    }
  }
  return 0;
}

bool HugeBlocks::Move(Huge* huge, size_t bytes) {
  char* const start = huge->start;
  const size_t old_bytes = huge->bytes;
  void* const place =
      source_.MapPlace(old_bytes, bytes, PlaceAlignment(bytes, huge->alignment));
  if (place == nullptr) return false;
  if (!PageMap::Reserve(place, kGranuleBytes)) {
    source_.UnmapPlace(old_bytes, place, bytes);
    return false;
  }
  // The entry goes first: once moved away from, the address may be another's.
  PageMap::Set(start, kGranuleBytes, kNoTag, nullptr);
  if (!source_.Move(start, old_bytes, place, bytes)) {
    PageMap::Set(start, kGranuleBytes, kHugeTag, huge);
    return false;
  }
  PageMap::Set(place, kGranuleBytes, kHugeTag, huge);
  SetExtent(huge, static_cast<char*>(place), bytes);
  return true;
}

void HugeBlocks::SetExtent(Huge* huge, char* start, size_t bytes) {
  {
    LockHolder hold(lock_);
    live_.bytes += bytes - huge->bytes;
    NotePeak();
    huge->start = start;
    huge->bytes = bytes;
  }
  SeeToCached();
}

Huge* HugeBlocks::Of(const void* p) {
  if (PageMap::TagOf(p) != kHugeTag) return nullptr;
  Huge* const huge = static_cast<Huge*>(PageMap::DescriptorOf(p));
  return huge->start == p && IsInUse(huge) ? huge : nullptr;
}

Huge* HugeBlocks::Containing(const void* p) {
  LockHolder hold(lock_);
  for (const List* list : {&live_, &cached_}) {
    for (Huge* huge = list->newest; huge != nullptr; huge = huge->next) {
      const uintptr_t offset = reinterpret_cast<uintptr_t>(p) -
                               reinterpret_cast<uintptr_t>(huge->start);
      if (offset < huge->bytes) return huge;
    }
  }
  return nullptr;
}

HugeBlocks::Statistics HugeBlocks::statistics() {
  LockHolder hold(lock_);
  return {live_.blocks, live_.bytes, cached_.blocks, cached_.bytes};
}

void HugeBlocks::Verify() {
  LockHolder hold(lock_);
  live_.Verify(/*in_use=*/true);
  cached_.Verify(/*in_use=*/false);
  QUARRY_CHECK(keeps_any_.load(std::memory_order_relaxed) == (cached_.blocks != 0));
  QUARRY_CHECK(peak_live_bytes_ >= live_.bytes);
  for (const Huge* huge = cached_.newest;
       huge != nullptr && huge->next != nullptr; huge = huge->next) {
    QUARRY_CHECK(!IsBefore(huge->freed_ms, huge->next->freed_ms));
  }
}

void HugeBlocks::List::PushNewest(Huge* huge) {
  huge->previous = nullptr;
  huge->next = newest;
  (newest != nullptr ? newest->previous : oldest) = huge;
  newest = huge;
  ++blocks;
  bytes += huge->bytes;
}

void HugeBlocks::List::Remove(Huge* huge) {
  (huge->previous != nullptr ? huge->previous->next : newest) = huge->next;
  (huge->next != nullptr ? huge->next->previous : oldest) = huge->previous;
  --blocks;
  bytes -= huge->bytes;
}

void HugeBlocks::List::Verify(bool in_use) const {
  size_t counted_blocks = 0, counted_bytes = 0;
  const Huge* previous = nullptr;
  for (const Huge* huge = newest; huge != nullptr; huge = huge->next) {
    QUARRY_CHECK(huge->previous == previous);
    QUARRY_CHECK(IsInUse(huge) == in_use);
    QUARRY_CHECK(huge->bytes > 0 && huge->bytes % PageBytes() == 0);
    QUARRY_CHECK(huge->alignment >= kGranuleBytes);
    QUARRY_CHECK(IsMultiple(huge->start, huge->alignment));
    previous = huge;
    ++counted_blocks;
    counted_bytes += huge->bytes;
  }
  QUARRY_CHECK(previous == oldest);
  QUARRY_CHECK(counted_blocks == blocks);
  QUARRY_CHECK(counted_bytes == bytes);
}

}  // namespace quarry
