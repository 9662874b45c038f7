#include "arena/growth_history.h"

namespace quarry {

Filling GrowthHistory::Expect(PageSource& source, void* start) {
  if (++ranges_since_sample_ < kRangesOfSample) return expected_;
  const bool was_filled =
      sample_ != nullptr && source.IsMostlyResident(sample_, kHugePageBytes);
  expected_ = was_filled ? Filling::kFromLowEnd : Filling::kUnknown;
  sample_ = start;
  ranges_since_sample_ = 0;
  return Filling::kUnknown;
}

}  // namespace quarry
