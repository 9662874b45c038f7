#include "arena/metadata.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include "arena/report.h"

namespace quarry {
namespace {

// A freed record of at least so many bytes is given back to the OS at once,
// and is zero again for that; a smaller one is cleared when it is reused.
constexpr size_t kPurgedRecordBytes = 64 << 10;

}  // namespace

size_t MetadataPool::RecordBytes(size_t bytes) {
  if (bytes <= kLargestSmall) return RoundUp(bytes, kSmallStep);
  const size_t quarter = std::bit_floor(bytes - 1) / 4;
  return RoundUp(bytes, std::max(quarter, PageBytes()));
}

size_t MetadataPool::ListOf(size_t record_bytes) {
  if (record_bytes <= kLargestSmall) return record_bytes / kSmallStep - 1;
  // The power of two below, and which quarter of the way to the next.
  const size_t last = record_bytes - 1;
  const size_t power = static_cast<size_t>(std::bit_width(last)) - 1;
  const size_t quarter = (last >> (power - 2)) & 3;
  const size_t first_power = std::bit_width(kLargestSmall) - 1;
  return kSmallLists + 4 * (power - first_power) + quarter;
}

void* MetadataPool::Allocate(size_t bytes) {
  const size_t record_bytes = RecordBytes(bytes);
  FreeRecord* record;
  {
    LockHolder hold(lock_);
    FreeRecord*& list = free_[ListOf(record_bytes)];
    record = list;
    if (record == nullptr) {
      void* const fresh = Bump(record_bytes);
      if (fresh != nullptr) in_use_bytes_ += record_bytes;
      return fresh;
    }
    list = record->next;
    in_use_bytes_ += record_bytes;
  }
  const size_t dirty_bytes =
      record_bytes < kPurgedRecordBytes ? record_bytes : sizeof(FreeRecord);
  memset(static_cast<void*>(record), 0, dirty_bytes);
  return record;
}

bool MetadataPool::Reserve(size_t large_bytes, size_t small_bytes) {
  // It begins on a page.
  const size_t bytes = PageBytes() + RecordBytes(large_bytes) + small_bytes;
  LockHolder hold(lock_);
  if (bytes <= static_cast<size_t>(end_ - bump_)) return true;
  size_t chunk_bytes;
  char* const chunk = MapChunk(bytes, &chunk_bytes);
  if (chunk == nullptr) return false;
  GiveUp(bump_, end_);
  bump_ = chunk;
  end_ = chunk + chunk_bytes;
  return true;
}

void MetadataPool::Deallocate(void* record, size_t bytes) {
  const size_t record_bytes = RecordBytes(bytes);
  if (record_bytes >= kPurgedRecordBytes &&
      !source_.PurgeToZero(record, record_bytes)) {
    memset(record, 0, record_bytes);
  }
  FreeRecord* const freed = static_cast<FreeRecord*>(record);
  LockHolder hold(lock_);
  FreeRecord*& list = free_[ListOf(record_bytes)];
  freed->next = list;
  list = freed;
  in_use_bytes_ -= record_bytes;
}

void* MetadataPool::Bump(size_t record_bytes) {
  // Large records are whole pages, so that they can be purged.
  const size_t alignment = record_bytes <= kLargestSmall ? kRecordAlignment : PageBytes();
  // Also for a large one: else it would leave too little for the next Reserve(), which maps
  // a chunk then, and of two rests that were kept for it one would be lost each time.
  const size_t gap_skipped = -reinterpret_cast<uintptr_t>(gap_) & (alignment - 1);
  if (gap_skipped + record_bytes <= static_cast<size_t>(gap_end_ - gap_)) {
    char* const record = gap_ + gap_skipped;
    gap_ = record + record_bytes;
    return record;
  }
  const size_t skipped = -reinterpret_cast<uintptr_t>(bump_) & (alignment - 1);
  if (skipped + record_bytes <= static_cast<size_t>(end_ - bump_)) {
    char* const record = bump_ + skipped;
    GiveUp(bump_, record);
    bump_ = record + record_bytes;
    return record;
  }
  size_t chunk_bytes;
  char* const chunk = MapChunk(record_bytes, &chunk_bytes);
  if (chunk == nullptr) return nullptr;
  // Of the rests of the two chunks the larger is bumped off.
  char* rest = chunk + record_bytes;
  char* rest_end = chunk + chunk_bytes;
  if (rest_end - rest > end_ - bump_) {
    std::swap(bump_, rest);
    std::swap(end_, rest_end);
  }
  GiveUp(rest, rest_end);
  return chunk;
}

void MetadataPool::GiveUp(char* start, char* end) {
  if (end - start <= gap_end_ - gap_) return;
  gap_ = start;
  gap_end_ = end;
}

char* MetadataPool::MapChunk(size_t least_bytes, size_t* chunk_bytes) {
  const size_t guard_bytes = PageBytes();
  least_bytes = RoundUp(least_bytes, PageBytes());
  size_t bytes = std::max(least_bytes, next_chunk_bytes_);
  void* mapping;
  while (true) {
    mapping = source_.Map(bytes + 2 * guard_bytes, PageBytes());
    if (mapping != nullptr) break;
    if (bytes == least_bytes) return nullptr;
    bytes = std::max(least_bytes, RoundUp(bytes / 2, PageBytes()));
  }
  next_chunk_bytes_ = std::min(2 * next_chunk_bytes_, kLargestChunkBytes);
  mapped_bytes_ += bytes + 2 * guard_bytes;
  char* const chunk = static_cast<char*>(mapping) + guard_bytes;
  source_.Guard(chunk - guard_bytes, guard_bytes);
  source_.Guard(chunk + bytes, guard_bytes);
  // Records are touched here and there, and most of a chunk never.
  source_.KeepSmallPages(chunk, bytes);
  *chunk_bytes = bytes;
  return chunk;
}

size_t MetadataPool::mapped_bytes() const {
  LockHolder hold(lock_);
  return mapped_bytes_;
}

size_t MetadataPool::in_use_bytes() const {
  LockHolder hold(lock_);
  return in_use_bytes_;
}

}  // namespace quarry
