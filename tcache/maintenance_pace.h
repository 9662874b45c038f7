// How long the maintenance thread waits after its ticks (maintenance.h).
//
// Thread-safety: the maintenance thread alone.
#ifndef QUARRY_TCACHE_MAINTENANCE_PACE_H_
#define QUARRY_TCACHE_MAINTENANCE_PACE_H_

#include <cstdint>

namespace quarry {

enum class TickResult {
  kNothingLeft,
  kGaveBack,  // Something, and something is left.
  kInVain,    // All that is left is too young, or the system refuses it.
};

class MaintenancePace {
 public:
  static constexpr uint64_t kUntilWork = 0;

  // After this many ticks in vain all that was young then has been due: the
  // ticks are four to the time for which memory may stay.
  static constexpr uint32_t kTicksInVain = 8;

  // Whether the thread sleeps after a tick with this result, and how long at
  // most, in milliseconds, when ticks are `pause_ms` apart.
  bool SleepsAfter(TickResult result, uint32_t pause_ms, uint64_t* most_ms);

  void NoteWork() { in_vain_ = 0; }

 private:
  uint32_t in_vain_ = 0;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_MAINTENANCE_PACE_H_
