#include "arena/dirty_runs.h"

#include "arena/clock.h"
#include "arena/report.h"

namespace quarry {

void DirtyRuns::Link(Run* run, Run* older) {
  Run* const newer = older != nullptr ? older->newer : oldest_;
  run->older = older;
  run->newer = newer;
  (older != nullptr ? older->newer : oldest_) = run;
  (newer != nullptr ? newer->older : newest_) = run;
}

void DirtyRuns::Unlink(Run* run) {
  (run->older != nullptr ? run->older->newer : oldest_) = run->newer;
  (run->newer != nullptr ? run->newer->older : newest_) = run->older;
}

void DirtyRuns::Add(Run* run, uint32_t now_ms) {
  if (run->dirty_pages == 0) return;
  run->freed_ms = now_ms;
  Link(run, newest_);
  Count(run->dirty_pages);
}

void DirtyRuns::Remove(Run* run) {
  if (run->dirty_pages == 0) return;
  Unlink(run);
  Count(-size_t{run->dirty_pages});
}

void DirtyRuns::Reduce(Run* run, uint32_t pages) {
  if (pages == 0) return;
  Count(-size_t{pages});
  run->dirty_pages -= pages;
  if (run->dirty_pages == 0) Unlink(run);
}

void DirtyRuns::Raise(Run* run, uint32_t pages, uint32_t now_ms) {
  if (pages <= run->dirty_pages) {
    Count(pages);
    run->dirty_pages += pages;
    return;
  }
  Remove(run);
  run->dirty_pages += pages;
  Add(run, now_ms);
}

void DirtyRuns::Join(Run* low, Run* high) {
  if (high->dirty_pages == 0) return;
  if (high->dirty_pages > low->dirty_pages) {
    if (low->dirty_pages > 0) Unlink(low);
    low->freed_ms = high->freed_ms;
    Link(low, high);
  }
  Unlink(high);
  low->dirty_pages += high->dirty_pages;
  high->dirty_pages = 0;
}

void DirtyRuns::Split(Run* run, Run* part, uint32_t pages) {
  part->dirty_pages = pages;
  if (pages == 0) return;
  part->freed_ms = run->freed_ms;
  Link(part, run);
  run->dirty_pages -= pages;
  if (run->dirty_pages == 0) Unlink(run);
}

void DirtyRuns::Verify(size_t* runs) const {
  size_t pages = 0;
  *runs = 0;
  const Run* older = nullptr;
  for (const Run* run = oldest_; run != nullptr; run = run->newer) {
    QUARRY_CHECK(run->older == older);
    QUARRY_CHECK(run->IsFree());
    QUARRY_CHECK(run->dirty_pages > 0 && run->dirty_pages <= run->pages);
    QUARRY_CHECK(older == nullptr || !IsBefore(run->freed_ms, older->freed_ms));
    ++*runs;
    pages += run->dirty_pages;
    older = run;
  }
  QUARRY_CHECK(newest_ == older);
  QUARRY_CHECK(pages == this->pages());
}

}  // namespace quarry
