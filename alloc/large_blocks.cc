#include "alloc/large_blocks.h"

#include <stdint.h>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "alloc/upkeep.h"
#include "arena/page_source.h"
#include "arena/process_arenas.h"
#include "tcache/thread_cache.h"

namespace quarry {

void NoteHuge(const Huge* huge) {
  if (huge->has_stale_pages || huge->has_huge_pages) return;
  filling_history.NoteAllocated(huge->start, huge->bytes);
}

Huge* AllocateHuge(size_t bytes, size_t alignment, Filling filling) {
  Huge* const huge = huge_blocks.Allocate(bytes, alignment, filling);
  if (huge != nullptr) NoteHuge(huge);
  return huge;
}

namespace {

// The same, and what it tells, of a run of which no page is resident, as far as is known.
ABSL_ATTRIBUTE_NOINLINE void NoteFreshRun(Run* run) {
  if (filling_history.Expect(run->bytes()) == Filling::kFromLowEnd) {
    run->arena()->PreferHugePages(run);
  } else {
    filling_history.NoteAllocated(run->start, run->bytes());
  }
}

}  // namespace

Large TryAllocateLarge(size_t bytes, size_t alignment) {
  if (ABSL_PREDICT_FALSE(bytes > PTRDIFF_MAX || alignment > PTRDIFF_MAX)) {
    return {};
  }
  if (ServedByArena(std::max(bytes, alignment))) {
    if (Huge* const kept = huge_blocks.TakeKept(bytes, alignment)) {
      return {kept->start, kept->zeroed};
    }
    Run* run;
    if (ABSL_PREDICT_TRUE(alignment <= PageBytes() && bytes > kSlabsOnlyMaxBytes)) {
      if (thread_state.cache->CachedRunBytes() != 0) {
        if (void* const kept = ThreadCache::TakeRun(bytes)) return {kept, false};
      }
      thread_state.cache->MakeRoomForRun(bytes);
      run = ArenaOfThread().Allocate(PagesFor(MediumBytes(bytes)), PageBytes());
    } else {
      // No more than the needed pages: what is aligned widely seldom fits
      // another request.
      const size_t pages = std::max<size_t>(PagesFor(bytes), 1);
      run = ArenaOfThread().Allocate(pages, alignment);
    }
    if (run == nullptr) return {};
    if (ABSL_PREDICT_FALSE(run->bytes() >= FillingHistory::kLeastToldBytes) &&
        run->is_fresh) {
      NoteFreshRun(run);
    }
    return {run->start, run->zeroed};
  }
  const Filling filling = filling_history.Expect(bytes);
  Huge* const huge = AllocateHuge(std::max<size_t>(bytes, 1), alignment, filling);
  if (filling == Filling::kFromLowEnd &&
      (huge == nullptr || huge->has_stale_pages)) {
    filling_history.TakeBack(bytes);
  }
  if (huge == nullptr) return {};
  return {huge->start, huge->zeroed};
}

Large AllocateLarge(size_t bytes, size_t alignment) {
  Large large = TryAllocateLarge(bytes, alignment);
  if (ABSL_PREDICT_FALSE(large.start == nullptr) && PurgeForRetry(bytes)) {
    large = TryAllocateLarge(bytes, alignment);
  }
  SeeToUpkeep();
  return large;
}

}  // namespace quarry
