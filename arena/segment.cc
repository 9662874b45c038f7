#include "arena/segment.h"

#include <algorithm>
#include <new>

#include "arena/report.h"

namespace quarry {

// Calls visit(word, mask) for each word of the bits [first, first + pages).
template <typename Visitor>
void Segment::ForEachWord(uint32_t first, uint32_t pages, Visitor visit) {
  const uint32_t end = first + pages;
  while (first < end) {
    const uint32_t bit = first % kWordBits;
    const uint32_t bits = std::min(kWordBits - bit, end - first);
    visit(first / kWordBits, (~uint64_t{0} >> (kWordBits - bits)) << bit);
    first += bits;
  }
}

size_t Segment::StateBytes(uint32_t reach_pages) {
  return RoundUp(reach_pages / kWordBits * sizeof(States), alignof(Segment));
}

uint32_t Segment::ReachFor(uint32_t pages) {
  const size_t most = kMostReachBytes / PageBytes();
  const size_t wanted =
      std::max<size_t>(pages, std::min(kReachFactor * pages, most));
  return static_cast<uint32_t>(RoundUp(wanted, kWordBits));
}

size_t Segment::RecordBytesOfReach(uint32_t reach_pages) {
  return StateBytes(reach_pages) + sizeof(Segment) +
         reach_pages * sizeof(std::atomic<Run*>);
}

Segment* Segment::Make(MetadataPool& metadata, Arena* arena, char* start,
                       uint32_t pages) {
  const uint32_t reach = ReachFor(pages);
  // Most of the reach lies below, where the kernel places the next mapping.
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  uint32_t below = static_cast<uint32_t>(
      std::min<uintptr_t>((reach - pages) / 4 * 3, address / PageBytes()));
  // Rounded down so that the states begin on a page if the mapping has a page of tags,
  // else on a cache line.
  const uint32_t tags_per_page =
      static_cast<uint32_t>(PageBytes() / sizeof(std::atomic<Run*>));
  below -= below % (pages >= tags_per_page
                        ? tags_per_page
                        : alignof(Segment) / sizeof(std::atomic<Run*>));

  void* const record = metadata.Allocate(RecordBytesOfReach(reach));
  if (record == nullptr) return nullptr;
  // All arrays are zero already, and most of them is never touched.
  char* const states =
      static_cast<char*>(record) + below * sizeof(std::atomic<Run*>);
  Segment* const segment =
      new (states + StateBytes(reach))
          Segment(arena, address - below * PageBytes(), reach, below, pages);
  segment->states_ = reinterpret_cast<States*>(states);
  return segment;
}

void Segment::Discard(MetadataPool& metadata, Segment* segment) {
  // Which begins with the tag of the first page.
  metadata.Deallocate(
      reinterpret_cast<char*>(segment->states_) -
          segment->middle_ * sizeof(std::atomic<Run*>),
      RecordBytesOfReach(segment->reach_pages_));
}

bool Segment::TryExtend(const char* start, uint32_t pages) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  if (start == AddressOf(end_page_)) {
    if (pages > reach_pages_ - end_page_) return false;
    end_page_ += pages;
    return true;
  }
  if (AddressOf(first_page_) != start + pages * PageBytes() ||
      address < reach_start_) {
    return false;
  }
  first_page_ -= pages;
  return true;
}

void Segment::Trim(uint32_t first, uint32_t pages) {
  QUARRY_DCHECK(pages < this->pages());
  SetPurged(first, pages, /*zero=*/true);
  if (first == first_page_) {
    first_page_ += pages;
  } else {
    QUARRY_DCHECK(first + pages == end_page_);
    end_page_ = first;
  }
}

void Segment::SetTags(Run* run) {
  const uint32_t first = PageOf(run->start);
  SetTag(first, run);
  SetTag(first + run->pages - 1, run);
}

void Segment::ClearTags(const Run* run) {
  const uint32_t first = PageOf(run->start);
  SetTag(first, nullptr);
  SetTag(first + run->pages - 1, nullptr);
}

void Segment::MoveEnd(Run* run, uint32_t pages) {
  const uint32_t first = PageOf(run->start);
  if (run->pages > 1) SetTag(first + run->pages - 1, nullptr);
  run->pages = pages;
  run->bin = 0;
  if (pages > 1) SetTag(first + pages - 1, run);
}

uint32_t Segment::CountDirty(uint32_t first, uint32_t pages) const {
  uint32_t count = 0;
  ForEachWord(first, pages, [&](uint32_t word, uint64_t mask) {
    count += static_cast<uint32_t>(std::popcount(states_[word].dirty & mask));
  });
  return count;
}

uint32_t Segment::FirstDirty(uint32_t first) const {
  uint32_t word = first / kWordBits;
  uint64_t dirty = states_[word].dirty & ~uint64_t{0} << first % kWordBits;
  while (dirty == 0) dirty = states_[++word].dirty;
  return word * kWordBits + static_cast<uint32_t>(std::countr_zero(dirty));
}

uint32_t Segment::LastDirty(uint32_t first, uint32_t pages) const {
  const uint32_t last = first + pages - 1;
  uint32_t word = last / kWordBits;
  uint64_t dirty =
      states_[word].dirty & ~uint64_t{0} >> (kWordBits - 1 - last % kWordBits);
  while (dirty == 0) dirty = states_[--word].dirty;
  const uint32_t page =
      word * kWordBits + static_cast<uint32_t>(std::bit_width(dirty)) - 1;
  QUARRY_DCHECK(page >= first);
  return page;
}

bool Segment::AreZero(uint32_t first, uint32_t pages) const {
  uint64_t unknown = 0;
  ForEachWord(first, pages, [&](uint32_t word, uint64_t mask) {
    unknown |= states_[word].unknown & mask;
  });
  return unknown == 0;
}

void Segment::SetDirty(uint32_t first, uint32_t pages) {
  ForEachWord(first, pages, [&](uint32_t word, uint64_t mask) {
    states_[word].dirty |= mask;
    states_[word].unknown |= mask;
  });
}

void Segment::SetResident(uint32_t first, uint32_t pages) {
  ForEachWord(first, pages, [&](uint32_t word, uint64_t mask) {
    states_[word].dirty |= mask;
  });
}

void Segment::SetPurged(uint32_t first, uint32_t pages, bool zero) {
  // Only where a bit is set: words of untouched pages stay untouched, too.
  ForEachWord(first, pages, [&](uint32_t word, uint64_t mask) {
    States& states = states_[word];
    if (((states.dirty | states.unknown) & mask) == 0) return;
    states.dirty &= ~mask;
    if (zero) states.unknown &= ~mask;
  });
}

void Segment::Verify() const {
  uint32_t page = first_page_;
  while (page < end_page_) {
    const Run* const run = TagAt(page);
    QUARRY_CHECK(run != nullptr);
    QUARRY_CHECK(run->segment == this);
    QUARRY_CHECK(run->start == AddressOf(page));
    QUARRY_CHECK(run->pages > 0 && run->pages <= end_page_ - page);
    const uint32_t last = page + run->pages - 1;
    QUARRY_CHECK(TagAt(last) == run);
    for (uint32_t i = page + 1; i < last; ++i) {
      QUARRY_CHECK(TagAt(i) == nullptr);
    }
    page = last + 1;
  }
  for (uint32_t i = 0; i < reach_pages_; ++i) {
    const bool mapped = i >= first_page_ && i < end_page_;
    QUARRY_CHECK(mapped || TagAt(i) == nullptr);
  }
  const uint32_t behind = reach_pages_ - end_page_;
  QUARRY_CHECK(AreZero(0, first_page_) && AreZero(end_page_, behind));
  QUARRY_CHECK(CountDirty(0, first_page_) + CountDirty(end_page_, behind) == 0);
}

}  // namespace quarry
