#include "arena/segment.h"

#include <algorithm>
#include <bit>
#include <new>

#include "arena/report.h"

namespace quarry {
namespace {

constexpr uint32_t kWordBits = 64;

size_t DirtyWords(uint32_t pages) {
  return (size_t{pages} + kWordBits - 1) / kWordBits;
}

// Calls visit(word, mask) for each word of the bits [first, first + pages).
template <typename Visitor>
void ForEachWord(uint32_t first, uint32_t pages, Visitor visit) {
  const uint32_t end = first + pages;
  while (first < end) {
    const uint32_t bit = first % kWordBits;
    const uint32_t bits = std::min(kWordBits - bit, end - first);
    visit(first / kWordBits, (~uint64_t{0} >> (kWordBits - bits)) << bit);
    first += bits;
  }
}

}  // namespace

size_t Segment::RecordBytes(uint32_t pages) {
  return sizeof(Segment) + pages * sizeof(std::atomic<Run*>) +
         DirtyWords(pages) * sizeof(uint64_t);
}

Segment* Segment::Make(MetadataPool& metadata, Arena* arena, char* start,
                       uint32_t pages) {
  void* const record = metadata.Allocate(RecordBytes(pages));
  if (record == nullptr) return nullptr;
  Segment* const segment = new (record) Segment(arena, start, pages);
  // Both arrays are zero already, and most of them is never touched.
  segment->tags_ = reinterpret_cast<std::atomic<Run*>*>(segment + 1);
  segment->dirty_ = reinterpret_cast<uint64_t*>(segment->tags_ + pages);
  return segment;
}

void Segment::Discard(MetadataPool& metadata, Segment* segment) {
  metadata.Deallocate(segment, RecordBytes(segment->pages_));
}

uint32_t Segment::PageOf(const void* p) const {
  const size_t offset =
      reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(start_);
  QUARRY_DCHECK(offset < bytes());
  return static_cast<uint32_t>(offset / PageBytes());
}

void Segment::SetTags(Run* run) {
  const uint32_t first = PageOf(run->start);
  // Relaxed: the lock orders all readers but one, see TagAt().
  tags_[first].store(run, std::memory_order_relaxed);
  tags_[first + run->pages - 1].store(run, std::memory_order_relaxed);
}

void Segment::ClearTags(const Run* run) {
  const uint32_t first = PageOf(run->start);
  tags_[first].store(nullptr, std::memory_order_relaxed);
  tags_[first + run->pages - 1].store(nullptr, std::memory_order_relaxed);
}

void Segment::MoveEnd(Run* run, uint32_t pages) {
  const uint32_t first = PageOf(run->start);
  if (run->pages > 1) {
    tags_[first + run->pages - 1].store(nullptr, std::memory_order_relaxed);
  }
  run->pages = pages;
  if (pages > 1) {
    tags_[first + pages - 1].store(run, std::memory_order_relaxed);
  }
}

Run* Segment::Before(const Run* run) const {
  const uint32_t first = PageOf(run->start);
  return first == 0 ? nullptr : TagAt(first - 1);
}

Run* Segment::After(const Run* run) const {
  const uint32_t next_page = PageOf(run->start) + run->pages;
  return next_page == pages_ ? nullptr : TagAt(next_page);
}

uint32_t Segment::CountDirty(uint32_t first, uint32_t pages) const {
  uint32_t count = 0;
  ForEachWord(first, pages, [&](uint32_t word, uint64_t mask) {
    count += static_cast<uint32_t>(std::popcount(dirty_[word] & mask));
  });
  return count;
}

void Segment::SetDirty(uint32_t first, uint32_t pages) {
  ForEachWord(first, pages,
              [&](uint32_t word, uint64_t mask) { dirty_[word] |= mask; });
}

void Segment::SetClean(uint32_t first, uint32_t pages) {
  // Only where a bit is set: words of untouched pages stay untouched, too.
  ForEachWord(first, pages, [&](uint32_t word, uint64_t mask) {
    if ((dirty_[word] & mask) != 0) dirty_[word] &= ~mask;
  });
}

void Segment::Verify() const {
  uint32_t page = 0;
  while (page < pages_) {
    const Run* const run = TagAt(page);
    QUARRY_CHECK(run != nullptr);
    QUARRY_CHECK(run->segment == this);
    QUARRY_CHECK(run->start == start_ + page * PageBytes());
    QUARRY_CHECK(run->pages > 0 && run->pages <= pages_ - page);
    const uint32_t last = page + run->pages - 1;
    QUARRY_CHECK(TagAt(last) == run);
    for (uint32_t i = page + 1; i < last; ++i) {
      QUARRY_CHECK(TagAt(i) == nullptr);
    }
    page = last + 1;
  }
}

}  // namespace quarry
