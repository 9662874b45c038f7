// How much more than the settings say an arena may keep dirty.
#ifndef QUARRY_ARENA_TRIM_SLACK_H_
#define QUARRY_ARENA_TRIM_SLACK_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/optimization.h"

namespace quarry {

// What was purged since too much was dirty, and then wanted again.
//
// A cap on dirty pages guards against a program that frees much and has no use for it. One
// that frees hundreds of MiB and takes as much again, in a loop, has a fault for each page
// that goes over the cap, each time. When it frees the first time, nobody can know which
// it is. But if pages that are not resident are taken within the decay time of the last such
// purge, they would have been dirty still: to that extent the purge was in vain, and so much
// more may be dirty from then on. What then grows older than the decay time after all was
// kept in vain, and lowers it by as much.
//
//   purged over the cap ----taken within the decay time----> slack
//   slack ----purged by age----> none
//
// Thread-safety: under the arena's lock, but for pages().
// Invariant: slack never exceeds what was purged over the cap.
// Cost: O(1); one comparison for what is taken while nothing was purged.
class TrimSlack {
 public:
  // So many pages went over the cap.
  void NotePurgedOverCap(size_t pages);

  // A run was taken, or extended, of which so many pages are not dirty.
  void NoteTaken(size_t clean_pages) {
    if (ABSL_PREDICT_FALSE(purged_pages_ > 0)) NoteTakenAfterPurge(clean_pages);
  }

  // So many pages went by age.
  void NotePurgedByAge(size_t pages);

  // May be called without the lock, and is then a moment old.
  size_t pages() const { return pages_.load(std::memory_order_relaxed); }

 private:
  void NoteTakenAfterPurge(size_t clean_pages);
  // What was purged longer ago than the decay time was not in vain.
  void ForgetOldPurges(uint32_t now_ms);

  // Went over the cap, and were not taken again.
  size_t purged_pages_ = 0;
  uint32_t purged_ms_ = 0;  // When the last of them did.
  // A plain counter that only the holder of the lock writes.
  std::atomic<size_t> pages_{0};
};

}  // namespace quarry

#endif  // QUARRY_ARENA_TRIM_SLACK_H_
