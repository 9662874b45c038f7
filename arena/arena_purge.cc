// How an arena gives memory back: its part of arena.h that begins with dirty runs.
#include <algorithm>
#include <utility>

#include "absl/base/optimization.h"
#include "arena/arena.h"
#include "arena/clock.h"
#include "arena/limits.h"
#include "arena/maintenance_signal.h"
#include "arena/page_map.h"
#include "arena/report.h"
#include "arena/settings.h"

namespace quarry {

void Arena::SeeToDirtyRuns() {
  const size_t dirty_bytes = FreeDirtyBytes();
  const size_t cap_bytes = CapBytes();
  if (ABSL_PREDICT_FALSE(dirty_bytes > cap_bytes) &&
      dirty_bytes > stubborn_dirty_bytes_.load(std::memory_order_relaxed) &&
      (maintenance_signal.state() != MaintenanceSignal::kAwake ||
       dirty_bytes / 2 >= cap_bytes)) {
    PurgeOverCap(kMostCapPurgeBytes, kMostCapPurgeSteps);
  }
  maintenance_signal.NoteDirty(FreeDirtyBytes());
}

bool Arena::CapAdapts() {
  return settings.mmap_threshold_adapts.load(std::memory_order_relaxed) &&
         !maintenance_signal.IsOff();
}

bool Arena::CapHasSlack() { return CapAdapts() && !AboveSoftLimit(); }

size_t Arena::CapBytes() const {
  if (settings.decay_ms.load(std::memory_order_relaxed) == 0) return 0;
  const size_t cap_bytes =
      settings.trim_threshold_bytes.load(std::memory_order_relaxed);
  if (!CapAdapts()) return cap_bytes;
  const size_t slack_bytes = CapHasSlack() ? trim_slack_.pages() * PageBytes() : 0;
  // A threshold that is just being set may be as large as can be.
  return std::max(cap_bytes + std::min(slack_bytes, SIZE_MAX - cap_bytes),
                  in_use_pages() * PageBytes() / 2);
}

size_t Arena::PurgeFreedBefore(uint32_t time_ms, size_t most_bytes) {
  PurgePass pass = {.reason = PurgeReason::kAge};
  pass.before_ms = time_ms;
  pass.left_bytes = most_bytes;
  PurgeAll(&pass);
  return pass.purged_bytes;
}

size_t Arena::PurgeOverCap(size_t most_bytes, size_t most_steps) {
  const size_t cap_bytes = CapBytes();
  const size_t stubborn_bytes =
      stubborn_dirty_bytes_.load(std::memory_order_relaxed);
  if (FreeDirtyBytes() <= std::max(cap_bytes, stubborn_bytes)) return 0;
  PurgePass pass = {.reason = PurgeReason::kCap};
  pass.keep_bytes = cap_bytes - std::min(cap_bytes / 2, kMostCapPurgeBytes);
  pass.left_bytes = most_bytes;
  pass.left_steps = most_steps;
  PurgeAll(&pass);
  // The system refuses to purge locked memory, and would be asked again with
  // every free: not before there is twice as much, if that is all there was.
  const bool is_stubborn =
      pass.refused && (pass.left_steps > 0 || pass.purged_bytes == 0);
  const size_t dirty_bytes = FreeDirtyBytes();
  stubborn_dirty_bytes_.store(
      is_stubborn && dirty_bytes > cap_bytes ? 2 * dirty_bytes : 0,
      std::memory_order_relaxed);
  return pass.purged_bytes;
}

size_t Arena::Purge(size_t keep_bytes) {
  size_t dirty_bytes = 0;
  bool more = true;
  while (more) {
    LockHolder one_step(purge_lock_);
    more = UnmapOne(keep_bytes, &dirty_bytes);
  }
  PurgePass pass = {.reason = PurgeReason::kRequest};
  pass.keep_bytes = keep_bytes;
  pass.gives_way = false;
  PurgeAll(&pass);
  return dirty_bytes + pass.purged_bytes;
}

void Arena::PurgeAll(PurgePass* pass) {
  pass->left_bytes = std::min(pass->left_bytes, FreeDirtyBytes());
  bool more = true;
  while (more && pass->left_steps > 0) {
    LockHolder one_step(purge_lock_);
    more = PurgeStep(pass);
    --pass->left_steps;
  }
}

bool Arena::PurgeStep(PurgePass* pass) {
  Run* piece;
  Place origin;
  {
    LockHolder hold(lock_);
    piece = BeginPurge(*pass, &origin);
    if (piece == nullptr) return false;
  }
  const PageSource::Purged purged =
      source_.Purge(piece->start, piece->bytes());
  LockHolder hold(lock_);
  EndPurge(piece, origin, purged, pass);
  return !(std::exchange(is_waited_for_, false) && pass->gives_way);
}

// The last dirty pages of the oldest run: requests are cut from its low end, as a rule,
// and will find pages there that are still resident.
Run* Arena::BeginPurge(const PurgePass& pass, Place* origin) {
  Run* const run = dirty_.oldest();
  if (run == nullptr || pass.left_bytes == 0) return nullptr;
  if (pass.reason == PurgeReason::kAge && !IsBefore(run->freed_ms, pass.before_ms)) {
    return nullptr;
  }
  const size_t dirty_bytes = FreeDirtyBytes();
  if (dirty_bytes <= pass.keep_bytes) return nullptr;
  const size_t wanted_bytes =
      std::min({RoundUp(dirty_bytes - pass.keep_bytes, PageBytes()),
                RoundUp(pass.left_bytes, PageBytes()),
                std::max(kPurgeStepBytes, PageBytes())});
  const uint32_t wanted = static_cast<uint32_t>(wanted_bytes / PageBytes());

  const Segment* const segment = run->segment;
  const uint32_t start = segment->PageOf(run->start);
  uint32_t first = start;
  uint32_t pages = run->pages;
  // Without records the run is not cut.
  if (StockRecords()) {
    const uint32_t end = segment->LastDirty(start, run->pages) + 1;
    first = std::max(start, end - std::min(wanted, end));
    first = segment->FirstDirty(first);
    pages = end - first;
  }
  *origin = Take(run);
  purging_ = CutOut(run, first - start, pages, *origin);
  purging_->state.store(Run::kPurging, std::memory_order_relaxed);
  return purging_;
}

void Arena::EndPurge(Run* piece, Place origin, PageSource::Purged purged,
                     PurgePass* pass) {
  Segment* const segment = piece->segment;
  size_t asked_bytes = piece->dirty_pages * PageBytes();
  if (purged != PageSource::Purged::kRefused) {
    pass->purged_bytes += asked_bytes;
    // What is purged lazily is still there when it is wanted soon.
    if (pass->reason == PurgeReason::kCap && CapHasSlack() &&
        purged == PageSource::Purged::kZero) {
      trim_slack_.NotePurgedOverCap(piece->dirty_pages);
    } else if (pass->reason == PurgeReason::kAge) {
      trim_slack_.NotePurgedByAge(piece->dirty_pages);
    }
    segment->SetPurged(segment->PageOf(piece->start), piece->pages,
                       /*zero=*/purged == PageSource::Purged::kZero);
    piece->dirty_pages = 0;
  }
  piece->state.store(Run::kFree, std::memory_order_relaxed);
  purging_ = nullptr;
  const uint32_t now_ms = NowMs();
  dirty_.Add(piece, now_ms);
  const bool vacant = origin == Place::kTop      ? top_ == nullptr
                      : origin == Place::kVictim ? victim_ == nullptr
                                                 : true;
  Run* const run = Settle(piece, vacant ? origin : Place::kBin);
  if (purged == PageSource::Purged::kRefused) {
    // With all that it is joined with, so that it is not asked for again before
    // everything else.
    pass->refused = true;
    asked_bytes = run->dirty_pages * PageBytes();
    dirty_.Remove(run);
    dirty_.Add(run, now_ms);
  }
  pass->left_bytes -= std::min(pass->left_bytes, asked_bytes);
}

bool Arena::UnmapOne(size_t keep_bytes, size_t* dirty_bytes) {
  Unmapping found;
  {
    LockHolder hold(lock_);
    const size_t dirty_before = FreeDirtyBytes();
    if (!FindUnmapping(keep_bytes, &found)) return false;
    *dirty_bytes += dirty_before - FreeDirtyBytes();
  }
  // The page map has forgotten them: once unmapped, the addresses may be
  // another's.
  source_.Unmap(found.start, found.bytes);
  if (found.segment != nullptr) Segment::Discard(metadata_, found.segment);
  return true;
}

bool Arena::FindUnmapping(size_t keep_bytes, Unmapping* found) {
  const auto may_go = [&](size_t bytes) {
    lock_.AssertHeld();
    return free_bytes() >= bytes && free_bytes() - bytes >= keep_bytes;
  };
  for (Segment* segment = segments_; segment != nullptr;
       segment = segment->next) {
    Run* const first = segment->TagAt(segment->first_page());
    Run* const last = segment->TagAt(segment->end_page() - 1);
    if (IsFree(first) && first == last) {
      if (!may_go(segment->bytes())) continue;
      *found = {segment->start(), segment->bytes(), segment};
      RemoveSegment(segment);
      return true;
    }
    for (Run* const run : {first, last}) {
      if (!IsFree(run)) continue;
      // The granules that the run fills at its end of the segment.
      const uintptr_t start = reinterpret_cast<uintptr_t>(run->start);
      const size_t skipped = RoundUp(start, kGranuleBytes) - start;
      const size_t bytes = run->bytes() > skipped
                               ? (run->bytes() - skipped) & -kGranuleBytes
                               : 0;
      if (bytes < kLeastTrimBytes || !may_go(bytes)) continue;
      *found = {run->start + skipped, bytes, nullptr};
      Trim(run, static_cast<uint32_t>(skipped / PageBytes()),
           static_cast<uint32_t>(bytes / PageBytes()));
      return true;
    }
  }
  return false;
}

void Arena::Trim(Run* run, uint32_t before, uint32_t pages) {
  QUARRY_DCHECK(spares_ >= kReservedRecords);
  Segment* const segment = run->segment;
  const Place place = Take(run);
  Run* const part = CutOut(run, before, pages, place);
  segment->ClearTags(part);
  segment->Trim(segment->PageOf(part->start), pages);
  PageMap::Set(part->start, part->bytes(), kNoTag, nullptr);
  mapped_pages_ -= pages;
  RecycleRecord(part);
}

}  // namespace quarry
