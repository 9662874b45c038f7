#include "arena/huge.h"

#include <algorithm>
#include <cstdint>
#include <new>

#include "arena/page_map.h"
#include "arena/report.h"

namespace quarry {
namespace {

bool IsInUse(const Huge* huge) {
  return huge->in_use.load(std::memory_order_relaxed);
}

bool IsMultiple(const void* p, size_t unit) {
  return (reinterpret_cast<uintptr_t>(p) & (unit - 1)) == 0;
}

}  // namespace

Huge* HugeBlocks::Allocate(size_t bytes, size_t alignment) {
  QUARRY_DCHECK(bytes > 0);
  if (bytes > PTRDIFF_MAX) return nullptr;
  bytes = RoundUp(bytes, PageBytes());
  alignment = std::max(alignment, kGranuleBytes);
  if (Huge* const cached = TakeCached(bytes, alignment)) return cached;
  if (Huge* const fresh = MapFresh(bytes, alignment)) return fresh;
  // What is kept for reuse may be what is missing.
  if (Purge() == 0) return nullptr;
  return MapFresh(bytes, alignment);
}

Huge* HugeBlocks::TakeCached(size_t bytes, size_t alignment) {
  LockHolder hold(lock_);
  Huge* best = nullptr;
  for (Huge* huge = cached_.newest; huge != nullptr; huge = huge->next) {
    if (huge->bytes < bytes || huge->bytes - bytes > bytes / 8) continue;
    if (!IsMultiple(huge->start, alignment)) continue;
    if (best == nullptr || huge->bytes < best->bytes) best = huge;
  }
  if (best == nullptr) return nullptr;
  cached_.Remove(best);
  best->alignment = alignment;
  best->zeroed = false;
  best->in_use.store(true, std::memory_order_relaxed);
  live_.PushNewest(best);
  return best;
}

Huge* HugeBlocks::MapFresh(size_t bytes, size_t alignment) {
  void* const record = metadata_.Allocate(sizeof(Huge));
  if (record == nullptr) return nullptr;
  void* const start = source_.Map(bytes, alignment);
  if (start == nullptr) {
    metadata_.Deallocate(record, sizeof(Huge));
    return nullptr;
  }
  if (!PageMap::Reserve(start, kGranuleBytes)) {
    source_.Unmap(start, bytes);
    metadata_.Deallocate(record, sizeof(Huge));
    return nullptr;
  }
  Huge* const huge = new (record) Huge;
  huge->start = static_cast<char*>(start);
  huge->bytes = bytes;
  huge->alignment = alignment;
  huge->zeroed = true;
  huge->in_use.store(true, std::memory_order_relaxed);
  PageMap::Set(start, kGranuleBytes, kHugeTag, huge);
  LockHolder hold(lock_);
  live_.PushNewest(huge);
  return huge;
}

void HugeBlocks::Deallocate(Huge* huge) {
  Huge* discarded = nullptr;  // Linked by next.
  {
    LockHolder hold(lock_);
    if (!IsInUse(huge)) ReportFreedLargeBlock("free", huge->start);
    huge->in_use.store(false, std::memory_order_relaxed);
    live_.Remove(huge);
    if (huge->bytes > kLargestCachedBytes) {
      discarded = huge;
      huge->next = nullptr;
    } else {
      cached_.PushNewest(huge);
      while (cached_.blocks > kMostCachedBlocks ||
             cached_.bytes > kMostCachedBytes) {
        Huge* const oldest = cached_.oldest;
        cached_.Remove(oldest);
        oldest->next = discarded;
        discarded = oldest;
      }
    }
  }
  DiscardAll(discarded);
}

size_t HugeBlocks::Purge() {
  Huge* discarded;
  {
    LockHolder hold(lock_);
    discarded = cached_.newest;
    cached_ = List();
  }
  return DiscardAll(discarded);
}

size_t HugeBlocks::DiscardAll(Huge* huge) {
  size_t bytes = 0;
  while (huge != nullptr) {
    Huge* const next = huge->next;
    bytes += huge->bytes;
    // The entry goes first: once unmapped, the address may be another's.
    PageMap::Set(huge->start, kGranuleBytes, kNoTag, nullptr);
    source_.Unmap(huge->start, huge->bytes);
    metadata_.Deallocate(huge, sizeof(Huge));
    huge = next;
  }
  return bytes;
}

bool HugeBlocks::Resize(Huge* huge, size_t bytes) {
  QUARRY_DCHECK(bytes > 0 && IsInUse(huge));
  if (bytes > PTRDIFF_MAX) return false;
  bytes = RoundUp(bytes, PageBytes());
  char* const start = huge->start;
  const size_t old_bytes = huge->bytes;
  if (bytes < old_bytes) {
    SetExtent(huge, start, bytes);
    source_.Unmap(start + bytes, old_bytes - bytes);
    return true;
  }
  if (bytes == old_bytes) return true;
  if (source_.GrowInPlace(start, old_bytes, bytes)) {
    SetExtent(huge, start, bytes);
    return true;
  }
  return Move(huge, bytes);
}

bool HugeBlocks::Move(Huge* huge, size_t bytes) {
  char* const start = huge->start;
  void* const place = source_.Map(bytes, huge->alignment);
  if (place == nullptr) return false;
  if (!PageMap::Reserve(place, kGranuleBytes)) {
    source_.Unmap(place, bytes);
    return false;
  }
  // The entry goes first: once moved away from, the address may be another's.
  PageMap::Set(start, kGranuleBytes, kNoTag, nullptr);
  if (!source_.Move(start, huge->bytes, place, bytes)) {
    PageMap::Set(start, kGranuleBytes, kHugeTag, huge);
    return false;
  }
  PageMap::Set(place, kGranuleBytes, kHugeTag, huge);
  SetExtent(huge, static_cast<char*>(place), bytes);
  return true;
}

void HugeBlocks::SetExtent(Huge* huge, char* start, size_t bytes) {
  LockHolder hold(lock_);
  live_.bytes += bytes - huge->bytes;
  huge->start = start;
  huge->bytes = bytes;
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
  QUARRY_CHECK(cached_.blocks <= kMostCachedBlocks);
  QUARRY_CHECK(cached_.bytes <= kMostCachedBytes);
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
