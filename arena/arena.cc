#include "arena/arena.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "absl/base/optimization.h"
#include "arena/clock.h"
#include "arena/limits.h"
#include "arena/page_map.h"
#include "arena/report.h"
#include "arena/settings.h"

namespace quarry {
namespace {

// How many of the run's pages [before, before + pages) are dirty. It knows how
// many are of all, which is often the answer.
uint32_t DirtyPagesIn(const Run* run, uint32_t before, uint32_t pages) {
  if (run->dirty_pages == 0) return 0;
  if (run->dirty_pages == run->pages) return pages;
  const Segment* const segment = run->segment;
  return segment->CountDirty(segment->PageOf(run->start) + before, pages);
}

// Where in a run with room for it a request goes: to the low end, or, if more pages are
// resident there, to the end of the last that is.
char* PlaceIn(const Run* run, uint32_t pages, size_t alignment) {
  char* const low = AlignedPlace(run, pages, alignment);
  if (run->dirty_pages == 0 || run->dirty_pages == run->pages) return low;
  const Segment* const segment = run->segment;
  const uint32_t dirty_at_low = segment->CountDirty(segment->PageOf(low), pages);
  if (dirty_at_low == pages) return low;
  const uint32_t first = segment->PageOf(run->start);
  const uint32_t end = segment->LastDirty(first, run->pages) + 1;
  if (end - first < pages) return low;
  char* high = segment->AddressOf(end - pages);
  high -= reinterpret_cast<uintptr_t>(high) & (alignment - 1);
  if (high <= low) return low;
  return segment->CountDirty(segment->PageOf(high), pages) > dirty_at_low ? high : low;
}

// Where the first huge page that begins in the run does; its end or more if none does.
char* HugePageIn(const Run* run) {
  return reinterpret_cast<char*>(RoundUp(
      reinterpret_cast<uintptr_t>(run->start), kHugePageBytes));
}

}  // namespace

Run* Arena::Allocate(size_t pages, size_t alignment, Filling filling) {
  QUARRY_DCHECK(pages > 0);
  if (pages > kMostPages) return nullptr;
  const uint32_t needed = static_cast<uint32_t>(pages);
  bool wait = false;
  Run* run = TryAllocate(needed, alignment, filling, &wait);
  if (ABSL_PREDICT_FALSE(wait)) {
    { LockHolder until_the_step_is_done(purge_lock_); }
    run = TryAllocate(needed, alignment, filling, nullptr);
  }
  if (run != nullptr && ABSL_PREDICT_FALSE(run->begins_huge_page)) {
    TouchHugePage(run);
  }
  return run;
}

Run* Arena::TryAllocate(uint32_t pages, size_t alignment, Filling filling,
                        bool* wait) {
  LockHolder hold(lock_);
  if (!StockRecords()) return nullptr;
  Run* fit = FindFit(pages, alignment);
  if (ABSL_PREDICT_FALSE(fit == nullptr)) {
    if (wait != nullptr && purging_ != nullptr) {
      // Once it is back it is joined with what is free beside it.
      const Segment* const segment = purging_->segment;
      size_t joined = purging_->pages;
      for (const Run* side :
           {segment->Before(purging_), segment->After(purging_)}) {
        if (IsFree(side)) joined += side->pages;
      }
      if (joined >= pages) {
        *wait = is_waited_for_ = true;
        return nullptr;
      }
    }
    fit = AddMapping(pages, alignment);
    if (fit == nullptr) return nullptr;
  }
  Run* const run = Carve(fit, pages, alignment);
  run->begins_huge_page = in_use_pages() * PageBytes() >= huge_from_bytes_ &&
                          TryPreferHugePage(run, filling);
  run->is_fresh = run->zeroed && run->dirty_pages == 0 && !run->begins_huge_page;
  return run;
}

bool Arena::TryPreferHugePage(const Run* run, Filling filling) {
  // Where no more may be dirty, or memory is short, what is resident too early
  // would go back at once.
  char* const start = HugePageIn(run);
  if (start >= run->end() ||
      settings.huge_pages.load(std::memory_order_relaxed) !=
          HugePagePolicy::kGrown ||
      FreeDirtyBytes() + kHugePageBytes > CapBytes() || AboveSoftLimit()) {
    return false;
  }
  const uint32_t pages = static_cast<uint32_t>(kHugePageBytes / PageBytes());
  Segment* const segment = run->segment;
  const uint32_t first = segment->PageOf(start);
  const uint32_t own = static_cast<uint32_t>((run->end() - start) / PageBytes());
  Run* const rest = segment->After(run);
  if (!IsFree(rest) || own >= pages || rest->pages < pages - own ||
      segment->CountDirty(first, pages) != 0 ||
      !segment->AreZero(first, pages)) {
    return false;
  }
  if (filling == Filling::kUnknown) filling = growth_.Expect(source_, start);
  if (filling == Filling::kUnknown) return false;
  segment->SetResident(first, pages);
  dirty_.Raise(rest, pages - own, NowMs());
  // Before another thread can touch a page of it, which would be a small one.
  source_.PreferHugePages(start, kHugePageBytes);
  return true;
}

// The pages behind the run are no work for the maintenance thread: a program that
// frees nothing need not have one.
void Arena::TouchHugePage(Run* run) {
  // Without a lock, for the system clears all of the huge page now.
  char* const start = HugePageIn(run);
  *static_cast<volatile char*>(start) = 0;
  LockHolder hold(lock_);
  // What was unmapped since the run was cut out is not the arena's any more.
  const Segment* const segment = run->segment;
  const size_t bytes = std::min<size_t>(
      kHugePageBytes, segment->start() + segment->bytes() - start);
  const bool is_huge = source_.FinishHugePage(start, bytes);
  // Of what was purged or unmapped since, it tells nothing that pages are missing.
  const uint32_t pages = static_cast<uint32_t>(kHugePageBytes / PageBytes());
  const bool is_whole =
      purging_ == nullptr &&
      segment->CountDirty(segment->PageOf(start), pages) == pages;
  if (is_huge) {
    huge_page_failures_ = 0;
  } else if (is_whole) {
    ForgetHugePage(run, start + kHugePageBytes);
    if (++huge_page_failures_ >= kMostHugePageFailures) {
      huge_from_bytes_ = 2 * in_use_pages() * PageBytes();
    }
  }
}

// Of a range that ends at `end` and did not come, what is free behind the run is not
// resident, unless another thread had it meanwhile.
void Arena::ForgetHugePage(const Run* run, const char* end) {
  Segment* const segment = run->segment;
  Run* const rest = segment->After(run);
  if (!IsFree(rest) || rest->start >= end) return;
  const uint32_t first = segment->PageOf(rest->start);
  const uint32_t pages = std::min(
      rest->pages, static_cast<uint32_t>((end - rest->start) / PageBytes()));
  if (!segment->AreZero(first, pages)) return;
  segment->SetPurged(first, pages, /*zero=*/true);
  dirty_.Reduce(rest, pages);
}

void Arena::EndHugePages(Run* run) {
  run->has_huge_pages = false;
  source_.KeepSmallPages(run->start, run->bytes());
}

void Arena::Deallocate(Run* run, size_t touched_pages) {
  {
    LockHolder hold(lock_);
    if (run->WasFreed()) ReportFreedLargeBlock("free", run->start);
    QUARRY_DCHECK(touched_pages <= run->pages);
    Free(run, static_cast<uint32_t>(touched_pages));
  }
  SeeToDirtyRuns();
}

void Arena::DeallocateMovedOut(Run* run) {
  LockHolder hold(lock_);
  if (run->WasFreed()) ReportFreedLargeBlock("realloc", run->start);
  Segment* const segment = run->segment;
  segment->SetPurged(segment->PageOf(run->start), run->pages, /*zero=*/true);
  Free(run, 0);
}

size_t Arena::TryGrow(Run* run, size_t least_pages, size_t most_pages) {
  LockHolder hold(lock_);
  QUARRY_DCHECK(!run->WasFreed() && run->pages <= least_pages);
  QUARRY_DCHECK(least_pages <= most_pages);
  if (most_pages == run->pages) return run->pages;
  Segment* const segment = run->segment;
  Run* const after = segment->After(run);
  const size_t room = run->pages + (IsFree(after) ? after->pages : size_t{0});
  const size_t pages = std::min(room, most_pages);
  if (pages < least_pages) return 0;
  if (pages == run->pages) return pages;
  if (!StockRecords()) return least_pages == run->pages ? least_pages : 0;
  // Or it would be two mappings to the system, which does not move those.
  if (run->has_huge_pages) EndHugePages(run);
  run->has_grown = true;

  const uint32_t more = static_cast<uint32_t>(pages) - run->pages;
  // All of it, or who frees it takes what was in the new part for the program's.
  run->zeroed = run->zeroed && segment->AreZero(segment->PageOf(after->start), more);
  const Place place = Take(after);
  Run* const part = CutOut(after, 0, more, place);
  segment->ClearTags(part);
  segment->MoveEnd(run, static_cast<uint32_t>(pages));
  CountInUse(in_use_pages() + more);
  trim_slack_.NoteTaken(more - part->dirty_pages);
  RecycleRecord(part);
  return pages;
}

Run* Arena::KeptBehind(const Run* run, size_t least_pages, size_t* bytes) {
  LockHolder hold(lock_);
  Run* kept = nullptr;
  size_t pages = run->pages;
  for (Run* behind = run->segment->After(run); behind != nullptr;
       behind = run->segment->After(behind)) {
    const Run::State state = behind->state.load(std::memory_order_relaxed);
    if (state != Run::kFree && state != Run::kCached) break;
    if (state == Run::kCached && kept == nullptr) {
      kept = behind;
      *bytes = kept->bytes();
    }
    pages += behind->pages;
    if (pages >= least_pages) return kept;
  }
  return nullptr;
}

void Arena::Shrink(Run* run, size_t pages) {
  {
    LockHolder hold(lock_);
    QUARRY_DCHECK(!run->WasFreed() && pages > 0 && pages <= run->pages);
    if (pages == run->pages || !StockRecords()) return;
    if (run->has_huge_pages) EndHugePages(run);
    const uint32_t fewer = run->pages - static_cast<uint32_t>(pages);
    run->segment->MoveEnd(run, static_cast<uint32_t>(pages));
    Run* const rest = TakeRecord(run->segment, run->end(), fewer);
    run->segment->SetTags(rest);
    ++in_use_runs_;
    Free(rest, fewer);
  }
  SeeToDirtyRuns();
}

bool Arena::StockRecords() {
  while (spares_ < kMostNewRecords + kReservedRecords) {
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
  run->dirty_pages = 0;
  return run;
}

void Arena::RecycleRecord(Run* run) {
  run->next = spare_records_;
  spare_records_ = run;
  ++spares_;
}

Run* Arena::AddMapping(uint32_t pages, size_t alignment) {
  const size_t needed_bytes = RoundUp(pages * PageBytes(), kGranuleBytes);
  // A mapping that starts aligned wastes nothing before the request, and before its first
  // huge page no small ones.
  bool is_huge = settings.huge_pages.load(std::memory_order_relaxed) ==
                 HugePagePolicy::kGrown;
  const size_t wanted_bytes =
      std::clamp(std::bit_floor(mapped_pages_ * PageBytes() + kFirstSegmentBytes),
                 kFirstSegmentBytes, kLargestSegmentBytes);
  // Where the system has no room for that much and its records, for less, and at last for
  // a mapping that starts anywhere: to align it takes more addresses for a moment.
  for (size_t bytes = std::max(needed_bytes, wanted_bytes);;
       bytes = std::max(needed_bytes, RoundUp(bytes / 2, kGranuleBytes))) {
    is_huge = is_huge && bytes >= kHugePageBytes;
    // Room for its own record and those of slabs first: under a limit, what is mapped could
    // not be used without.
    if (bytes <= kFirstSegmentBytes ||
        metadata_.Reserve(Segment::RecordBytes(static_cast<uint32_t>(bytes / PageBytes())),
                          bytes / kGranuleBytes * kMostSlabRecordBytes)) {
      const size_t own_alignment = is_huge ? kHugePageBytes : kGranuleBytes;
      Run* const run = MapRun(bytes, std::max(alignment, own_alignment));
      if (run != nullptr) return run;
    }
    if (bytes == needed_bytes && !std::exchange(is_huge, false)) return nullptr;
  }
}

Run* Arena::MapRun(size_t bytes, size_t alignment) {
  if (!PageMap::MakeTables()) return nullptr;
  char* const start = static_cast<char*>(source_.Map(bytes, alignment));
  if (start == nullptr) return nullptr;
  const uint32_t pages = static_cast<uint32_t>(bytes / PageBytes());
  Segment* const segment =
      PageMap::Reserve(start, bytes) ? SegmentFor(start, pages) : nullptr;
  if (segment == nullptr) {
    source_.Unmap(start, bytes);
    return nullptr;
  }
  // Where the system makes huge pages of all that is touched, a heap of 3 MiB
  // would have 5 resident, and threads with a slab of each size 24 in place of 8.
  if (settings.huge_pages.load(std::memory_order_relaxed) !=
      HugePagePolicy::kSystem) {
    source_.KeepSmallPages(start, bytes);
  }
  mapped_pages_ += pages;
  PageMap::Set(start, bytes, kRunTag, segment);

  Run* const run = TakeRecord(segment, start, pages);
  segment->SetTags(run);
  return Settle(run, Place::kTop);
}

// The segment that a new mapping extends, or is.
Segment* Arena::SegmentFor(char* start, uint32_t pages) {
  for (Segment* segment = segments_; segment != nullptr;
       segment = segment->next) {
    if (segment->TryExtend(start, pages)) return segment;
  }
  Segment* const segment = Segment::Make(metadata_, this, start, pages);
  if (segment == nullptr) return nullptr;
  segment->next = segments_;
  if (segments_ != nullptr) segments_->previous = segment;
  segments_ = segment;
  ++segment_count_;
  return segment;
}

// The segment consists of one free run.
void Arena::RemoveSegment(Segment* segment) {
  Run* const run = segment->TagAt(segment->first_page());
  Take(run);
  dirty_.Remove(run);
  RecycleRecord(run);
  mapped_pages_ -= segment->pages();
  --segment_count_;
  (segment->previous != nullptr ? segment->previous->next : segments_) =
      segment->next;
  if (segment->next != nullptr) segment->next->previous = segment->previous;
  PageMap::Set(segment->start(), segment->bytes(), kNoTag, nullptr);
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

Run* Arena::Carve(Run* run, uint32_t pages, size_t alignment) {
  char* const place = PlaceIn(run, pages, alignment);
  const uint32_t before =
      run->segment->PageOf(place) - run->segment->PageOf(run->start);
  const Place origin = Take(run);
  const bool becomes_victim =
      origin == Place::kBin && pages <= RunBins::kMostSmallPages;
  run = CutOut(run, before, pages, becomes_victim ? Place::kVictim : origin);
  run->zeroed =
      run->segment->AreZero(run->segment->PageOf(run->start), pages);
  run->bin = 0;
  run->has_grown = false;
  run->state.store(Run::kInUse, std::memory_order_relaxed);
  CountInUse(in_use_pages() + pages);
  ++in_use_runs_;
  trim_slack_.NoteTaken(pages - run->dirty_pages);
  return run;
}

//   run:   [   before   |   part   |   rest   ]
Run* Arena::CutOut(Run* run, uint32_t before, uint32_t pages, Place place) {
  Segment* const segment = run->segment;
  const uint32_t rest = run->pages - before - pages;
  if (before == 0 && rest == 0) {
    dirty_.Remove(run);
    return run;
  }
  // What is left keeps the record, and with it the place in the list by age.
  const uint32_t dirty = DirtyPagesIn(run, before, pages);
  Run* tail = nullptr;
  Run* const part =
      TakeRecord(segment, run->start + before * PageBytes(), pages);
  if (before > 0 && rest > 0) {
    tail = TakeRecord(segment, part->end(), rest);
    dirty_.Split(run, tail, DirtyPagesIn(run, before + pages, rest));
  }
  dirty_.Reduce(run, dirty);
  part->dirty_pages = dirty;

  if (before == 0) run->start = part->end();
  run->pages = before > 0 ? before : rest;
  segment->SetTags(run);
  segment->SetTags(part);
  if (tail == nullptr) {
    Put(run, place);
    return part;
  }
  segment->SetTags(tail);
  Put(run, before > rest ? place : Place::kBin);
  Put(tail, before > rest ? Place::kBin : place);
  return part;
}

void Arena::Free(Run* run, uint32_t touched_pages) {
  if (ABSL_PREDICT_FALSE(run->has_huge_pages)) EndHugePages(run);
  Segment* const segment = run->segment;
  const uint32_t first = segment->PageOf(run->start);
  segment->SetDirty(first, touched_pages);
  run->dirty_pages = touched_pages == run->pages
                         ? touched_pages
                         : segment->CountDirty(first, run->pages);
  CountInUse(in_use_pages() - run->pages);
  --in_use_runs_;
  run->state.store(Run::kFree, std::memory_order_relaxed);
  dirty_.Add(run, NowMs());
  Settle(run, Place::kBin);
}

Run* Arena::Settle(Run* run, Place place) {
  // Of two places the later one in the list of kinds is kept.
  Run* const before = run->segment->Before(run);
  if (IsFree(before)) {
    place = std::max(place, Take(before));
    run = Join(before, run);
  }
  Run* const after = run->segment->After(run);
  if (IsFree(after)) {
    place = std::max(place, Take(after));
    run = Join(run, after);
  }
  Put(run, place);
  return run;
}

Run* Arena::Join(Run* low, Run* high) {
  Segment* const segment = low->segment;
  segment->ClearTags(low);
  segment->ClearTags(high);
  low->pages += high->pages;
  segment->SetTags(low);
  dirty_.Join(low, high);
  RecycleRecord(high);
  return low;
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

Run* Arena::RunContaining(const void* p) {
  if (PageMap::TagOf(p) != kRunTag) return nullptr;
  const Segment* const segment =
      static_cast<const Segment*>(PageMap::DescriptorOf(p));
  LockHolder hold(segment->arena()->lock_);
  // The pages may just have been unmapped.
  if (PageMap::DescriptorOf(p) != segment) return nullptr;
  // A run in the midst of which p lies is found by its first page.
  uint32_t page = segment->PageOf(p);
  while (segment->TagAt(page) == nullptr) --page;
  return segment->TagAt(page);
}

Arena::Statistics Arena::statistics() {
  LockHolder hold(lock_);
  return {mapped_pages_ * PageBytes(),
          in_use_pages() * PageBytes(),
          free_bytes(),
          FreeDirtyBytes(),
          segment_count_,
          in_use_runs_,
          free_runs_};
}

void Arena::Verify() {
  LockHolder hold(lock_);
  size_t mapped_pages = 0, free_pages = 0, dirty_pages = 0;
  size_t segments = 0, in_use_runs = 0, free_runs = 0, dirty_runs = 0;
  size_t purging_pages = 0;
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
    for (Run* run = segment->TagAt(segment->first_page()); run != nullptr;
         run = segment->After(run)) {
      if (run == purging_) {
        QUARRY_CHECK(run->state.load(std::memory_order_relaxed) ==
                     Run::kPurging);
        purging_pages += run->pages;
        continue;
      }
      if (!IsFree(run)) {
        QUARRY_CHECK(!run->WasFreed());
        ++in_use_runs;
        continue;
      }
      QUARRY_CHECK(!run->has_huge_pages);
      ++free_runs;
      free_pages += run->pages;
      dirty_pages += run->dirty_pages;
      dirty_runs += run->dirty_pages > 0;
      QUARRY_CHECK(
          run->dirty_pages ==
          segment->CountDirty(segment->PageOf(run->start), run->pages));
      victim_found |= run == victim_;
      top_found |= run == top_;
      QUARRY_CHECK(!IsFree(segment->Before(run)) &&
                   !IsFree(segment->After(run)));
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
  QUARRY_CHECK(free_pages + purging_pages == mapped_pages_ - in_use_pages());
  QUARRY_CHECK((purging_pages > 0) == (purging_ != nullptr));
  QUARRY_CHECK(in_use_runs == in_use_runs_);
  QUARRY_CHECK(free_runs == free_runs_);

  // As many runs are listed as have dirty pages, and each of them has some.
  size_t listed_runs;
  dirty_.Verify(&listed_runs);
  QUARRY_CHECK(listed_runs == dirty_runs);
  QUARRY_CHECK(dirty_.pages() == dirty_pages);

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
