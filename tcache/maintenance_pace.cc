#include "tcache/maintenance_pace.h"

#include <algorithm>

namespace quarry {

bool MaintenancePace::SleepsAfter(TickResult result, uint32_t pause_ms,
                                  uint64_t* most_ms) {
  constexpr uint32_t kMostDoublings = 20;
  if (result != TickResult::kInVain) in_vain_ = 0;
  if (result == TickResult::kGaveBack) return false;
  if (result == TickResult::kNothingLeft) {
    *most_ms = kUntilWork;
    return true;
  }
  if (++in_vain_ <= kTicksInVain) return false;
  *most_ms = uint64_t{pause_ms}
             << std::min(in_vain_ - kTicksInVain, kMostDoublings);
  return true;
}

}  // namespace quarry
