#include "arena/arena.h"

#include <algorithm>
#include <new>
#include <utility>

#include "arena/page_map.h"
#include "arena/report.h"
#include "arena/settings.h"

namespace quarry {
namespace {

bool IsFree(const Run* run) {
  return run != nullptr && run->IsFree();
}

uint32_t DirtyPagesOf(const Run* run) {
  return run->segment->CountDirty(run->segment->PageOf(run->start), run->pages);
}

// Low and high are neighbours and in no place; high's record is left over.
void Join(Run* low, Run* high) {
  Segment* const segment = low->segment;
  segment->ClearTags(low);
  segment->ClearTags(high);
  low->pages += high->pages;
  segment->SetTags(low);
}

}  // namespace

Run* Arena::Allocate(size_t pages, size_t alignment) {
  QUARRY_DCHECK(pages > 0);
  if (pages > kMostPages) return nullptr;
  const uint32_t needed = static_cast<uint32_t>(pages);
  LockHolder hold(lock_);
  if (!StockRecords()) return nullptr;
  Run* fit = FindFit(needed, alignment);
  if (fit == nullptr) {
    if (!AddSegment(needed, alignment)) return nullptr;
    fit = top_;
  }
  return Carve(fit, needed, alignment);
}

void Arena::Deallocate(Run* run) {
  LockHolder hold(lock_);
  if (IsFree(run)) ReportFreedLargeBlock("free", run->start);
  Free(run);
  PurgeIfTooDirty();
}

bool Arena::Grow(Run* run, size_t pages) {
  LockHolder hold(lock_);
  QUARRY_DCHECK(!IsFree(run) && pages >= run->pages);
  if (pages == run->pages) return true;
  Segment* const segment = run->segment;
  Run* const after = segment->After(run);
  if (!IsFree(after) || after->pages < pages - run->pages) return false;

  const uint32_t more = static_cast<uint32_t>(pages) - run->pages;
  const Place place = Take(after);
  free_dirty_pages_ -= segment->CountDirty(segment->PageOf(after->start), more);
  in_use_pages_ += more;
  segment->ClearTags(after);
  segment->MoveEnd(run, static_cast<uint32_t>(pages));
  if (after->pages == more) {
    RecycleRecord(after);
    return true;
  }
  after->start = run->end();
  after->pages -= more;
  segment->SetTags(after);
  Put(after, place);
  return true;
}

void Arena::Shrink(Run* run, size_t pages) {
  LockHolder hold(lock_);
  QUARRY_DCHECK(!IsFree(run) && pages > 0 && pages <= run->pages);
  if (pages == run->pages || !StockRecords()) return;
  const uint32_t fewer = run->pages - static_cast<uint32_t>(pages);
  run->segment->MoveEnd(run, static_cast<uint32_t>(pages));
  Run* const rest = TakeRecord(run->segment, run->end(), fewer);
  ++in_use_runs_;
  Free(rest);
  PurgeIfTooDirty();
}

bool Arena::StockRecords() {
  while (spares_ < kMostNewRecords) {
    void* const record = metadata_.Allocate(sizeof(Run));
    if (record == nullptr) return false;
    RecycleRecord(new (record) Run);
  }
  return true;
}

Run* Arena::TakeRecord(Segment* segment, char* start, uint32_t pages) {
  Run* const run = spare_records_;
  spare_records_ = run->next;
  --spares_;
  run->segment = segment;
  run->start = start;
  run->pages = pages;
  return run;
}

void Arena::RecycleRecord(Run* run) {
  run->next = spare_records_;
  spare_records_ = run;
  ++spares_;
}

bool Arena::AddSegment(uint32_t pages, size_t alignment) {
  // A mapping that starts aligned wastes nothing before the request.
  alignment = std::max(alignment, kGranuleBytes);
  const size_t needed_bytes = RoundUp(pages * PageBytes(), kGranuleBytes);
  size_t bytes = std::max(needed_bytes, next_segment_bytes_);
  void* mapping = source_.Map(bytes, alignment);
  while (mapping == nullptr && bytes > needed_bytes) {
    bytes = std::max(needed_bytes, RoundUp(bytes / 2, kGranuleBytes));
    mapping = source_.Map(bytes, alignment);
  }
  if (mapping == nullptr) return false;

  char* const start = static_cast<char*>(mapping);
  const uint32_t segment_pages = static_cast<uint32_t>(bytes / PageBytes());
  Segment* const segment =
      PageMap::Reserve(start, bytes)
          ? Segment::Make(metadata_, this, start, segment_pages)
          : nullptr;
  if (segment == nullptr) {
    source_.Unmap(start, bytes);
    return false;
  }
  segment->next = segments_;
  if (segments_ != nullptr) segments_->previous = segment;
  segments_ = segment;
  ++segment_count_;
  mapped_pages_ += segment_pages;
  next_segment_bytes_ = std::min(2 * next_segment_bytes_, kLargestSegmentBytes);
  PageMap::Set(start, bytes, kRunTag, segment);

  Run* const run = TakeRecord(segment, start, segment_pages);
  segment->SetTags(run);
  Put(run, Place::kTop);
  return true;
}

// The segment consists of one free run.
void Arena::RemoveSegment(Segment* segment) {
  Run* const run = segment->TagAt(0);
  Take(run);
  free_dirty_pages_ -= DirtyPagesOf(run);
  mapped_pages_ -= segment->pages();
  --segment_count_;
  RecycleRecord(run);
  (segment->previous != nullptr ? segment->previous->next : segments_) =
      segment->next;
  if (segment->next != nullptr) segment->next->previous = segment->previous;
  // The entries go first: once unmapped, the addresses may be another's.
  PageMap::Set(segment->start(), segment->bytes(), kNoTag, nullptr);
  source_.Unmap(segment->start(), segment->bytes());
  Segment::Discard(metadata_, segment);
}

Run* Arena::FindFit(uint32_t pages, size_t alignment) const {
  Run* const binned = bins_.BestAlignedFit(pages, alignment);
  if (victim_ != nullptr &&
      AlignedPlace(victim_, pages, alignment) != nullptr) {
    if (binned == nullptr) return victim_;
    const bool small = pages <= RunBins::kMostSmallPages;
    const bool binned_is_better =
        small ? binned->pages == pages : binned->pages <= victim_->pages;
    return binned_is_better ? binned : victim_;
  }
  if (binned != nullptr) return binned;
  if (top_ != nullptr && AlignedPlace(top_, pages, alignment) != nullptr) {
    return top_;
  }
  return nullptr;
}

//   run:   [   before   |   place: the request   |   rest   ]
Run* Arena::Carve(Run* run, uint32_t pages, size_t alignment) {
  Segment* const segment = run->segment;
  char* const start = run->start;
  char* const place = AlignedPlace(run, pages, alignment);
  const uint32_t before = segment->PageOf(place) - segment->PageOf(start);
  const uint32_t rest = run->pages - before - pages;
  const Place origin = Take(run);
  segment->ClearTags(run);

  run->start = place;
  run->pages = pages;
  const uint32_t dirty = DirtyPagesOf(run);
  run->zeroed = dirty == 0;
  run->state.store(Run::kInUse, std::memory_order_relaxed);
  segment->SetTags(run);
  free_dirty_pages_ -= dirty;
  in_use_pages_ += pages;
  ++in_use_runs_;

  if (before > 0) {
    Run* const gap = TakeRecord(segment, start, before);
    segment->SetTags(gap);
    Put(gap, Place::kBin);
  }
  if (rest > 0) {
    Run* const tail = TakeRecord(segment, run->end(), rest);
    segment->SetTags(tail);
    const bool small = pages <= RunBins::kMostSmallPages;
    Put(tail, origin == Place::kBin && small ? Place::kVictim : origin);
  }
  return run;
}

void Arena::Free(Run* run) {
  Segment* const segment = run->segment;
  segment->SetDirty(segment->PageOf(run->start), run->pages);
  free_dirty_pages_ += run->pages;
  in_use_pages_ -= run->pages;
  --in_use_runs_;
  run->state.store(Run::kFree, std::memory_order_relaxed);
  segment->SetTags(run);

  Place place = Place::kBin;
  Run* const before = segment->Before(run);
  if (IsFree(before)) {
    place = Take(before);
    Join(before, run);
    RecycleRecord(run);
    run = before;
  }
  Run* const after = segment->After(run);
  if (IsFree(after)) {
    // Of two places the later one in the list of kinds is kept.
    place = std::max(place, Take(after));
    Join(run, after);
    RecycleRecord(after);
  }
  Put(run, place);
}

void Arena::Put(Run* run, Place place) {
  ++free_runs_;
  switch (place) {
    case Place::kBin:
      bins_.Insert(run);
      return;
    case Place::kVictim:
      std::swap(run, victim_);
      break;
    case Place::kTop:
      std::swap(run, top_);
      break;
  }
  if (run != nullptr) bins_.Insert(run);
}

Arena::Place Arena::Take(Run* run) {
  --free_runs_;
  if (run == victim_) {
    victim_ = nullptr;
    return Place::kVictim;
  }
  if (run == top_) {
    top_ = nullptr;
    return Place::kTop;
  }
  bins_.Remove(run);
  return Place::kBin;
}

Run* Arena::RunOf(const void* p) {
  if (PageMap::TagOf(p) != kRunTag) return nullptr;
  const Segment* const segment =
      static_cast<const Segment*>(PageMap::DescriptorOf(p));
  Run* const run = segment->TagAt(segment->PageOf(p));
  if (run == nullptr || run->start != p || !run->IsInUse()) return nullptr;
  return run;
}

Run* Arena::RunContaining(const void* p) {
  if (PageMap::TagOf(p) != kRunTag) return nullptr;
  const Segment* const segment =
      static_cast<const Segment*>(PageMap::DescriptorOf(p));
  LockHolder hold(segment->arena()->lock_);
  // A run in the midst of which p lies is found by its first page.
  uint32_t page = segment->PageOf(p);
  while (segment->TagAt(page) == nullptr) --page;
  return segment->TagAt(page);
}

size_t Arena::Purge(size_t keep_bytes) {
  LockHolder hold(lock_);
  return PurgeDownTo(keep_bytes);
}

void Arena::PurgeIfTooDirty() {
  const size_t most_bytes =
      settings.trim_threshold_bytes.load(std::memory_order_relaxed);
  if (free_dirty_bytes() <= std::max(most_bytes, stubborn_dirty_bytes_)) return;
  PurgeDownTo(most_bytes / 2);
  // The system refuses to purge locked memory, and would be asked again with
  // every free: not before there is twice as much.
  stubborn_dirty_bytes_ =
      free_dirty_bytes() > most_bytes ? 2 * free_dirty_bytes() : 0;
}

size_t Arena::PurgeDownTo(size_t keep_bytes) {
  size_t purged_bytes = 0;
  for (Segment* segment = segments_; segment != nullptr;) {
    Segment* const next = segment->next;
    const Run* const first = segment->TagAt(0);
    if (IsFree(first) && first->pages == segment->pages() &&
        free_bytes() - segment->bytes() >= keep_bytes) {
      purged_bytes += segment->bytes();
      RemoveSegment(segment);
    }
    segment = next;
  }
  const auto purge = [&](Run* run) {
    lock_.AssertHeld();
    if (free_dirty_bytes() <= keep_bytes) return false;
    purged_bytes += PurgeRun(run);
    return true;
  };
  bins_.ForEachFromLargest(purge);
  // These two are reused first.
  if (top_ != nullptr) purge(top_);
  if (victim_ != nullptr) purge(victim_);
  return purged_bytes;
}

size_t Arena::PurgeRun(Run* run) {
  const uint32_t dirty = DirtyPagesOf(run);
  // One call for the whole run: for its clean pages the kernel has nothing to
  // do.
  if (dirty == 0 || !source_.Purge(run->start, run->bytes())) return 0;
  run->segment->SetClean(run->segment->PageOf(run->start), run->pages);
  free_dirty_pages_ -= dirty;
  return dirty * PageBytes();
}

Arena::Statistics Arena::statistics() {
  LockHolder hold(lock_);
  return {mapped_pages_ * PageBytes(),
          in_use_pages_ * PageBytes(),
          free_bytes(),
          free_dirty_bytes(),
          segment_count_,
          in_use_runs_,
          free_runs_};
}

void Arena::Verify() {
  LockHolder hold(lock_);
  size_t mapped_pages = 0, free_pages = 0, dirty_pages = 0;
  size_t segments = 0, in_use_runs = 0, free_runs = 0;
  bool victim_found = victim_ == nullptr;
  bool top_found = top_ == nullptr;
  for (const Segment* segment = segments_; segment != nullptr;
       segment = segment->next) {
    ++segments;
    mapped_pages += segment->pages();
    QUARRY_CHECK(segment->arena() == this);
    QUARRY_CHECK(segment->next == nullptr ||
                 segment->next->previous == segment);
    segment->Verify();
    for (Run* run = segment->TagAt(0); run != nullptr;
         run = segment->After(run)) {
      if (!IsFree(run)) {
        ++in_use_runs;
        continue;
      }
      ++free_runs;
      free_pages += run->pages;
      dirty_pages += DirtyPagesOf(run);
      victim_found |= run == victim_;
      top_found |= run == top_;
      QUARRY_CHECK(!IsFree(segment->Before(run)) &&
                   !IsFree(segment->After(run)));
      QUARRY_CHECK(run != top_ ||
                   run->end() == segment->start() + segment->bytes());
      // A granule that holds a free page is no slab's.
      for (char* p = run->start; p < run->end(); p += PageBytes()) {
        QUARRY_CHECK(PageMap::TagOf(p) == kRunTag);
        QUARRY_CHECK(PageMap::DescriptorOf(p) == segment);
      }
    }
  }
  QUARRY_CHECK(victim_found && top_found);
  QUARRY_CHECK(victim_ == nullptr || victim_ != top_);
  QUARRY_CHECK(segments == segment_count_);
  QUARRY_CHECK(mapped_pages == mapped_pages_);
  QUARRY_CHECK(free_pages == mapped_pages_ - in_use_pages_);
  QUARRY_CHECK(dirty_pages == free_dirty_pages_);
  QUARRY_CHECK(in_use_runs == in_use_runs_);
  QUARRY_CHECK(free_runs == free_runs_);

  // As many runs in bins as are free and elsewhere nowhere: every one is in
  // exactly one place.
  size_t binned_runs, binned_pages;
  bins_.Verify(&binned_runs, &binned_pages);
  if (victim_ != nullptr) ++binned_runs, binned_pages += victim_->pages;
  if (top_ != nullptr) ++binned_runs, binned_pages += top_->pages;
  QUARRY_CHECK(binned_runs == free_runs_);
  QUARRY_CHECK(binned_pages == free_pages);
}

}  // namespace quarry
