// What calls see to besides their own block: memory that goes back to the system, at once
// where it is short and else in time.
#ifndef QUARRY_ALLOC_UPKEEP_H_
#define QUARRY_ALLOC_UPKEEP_H_

#include <stddef.h>

#include "absl/base/optimization.h"
#include "arena/arena.h"
#include "arena/limits.h"
#include "tcache/maintenance.h"

namespace quarry {

// The arena that the calling thread allocates from.
Arena& ArenaOfThread();

// What the heap keeps for later may be what the system will not give, or what a
// limit has no room beside, so it goes back before a request fails; but not for
// a request that is larger than all that could come free.
bool PurgeForRetry(size_t bytes);

// To be called where something was mapped and no lock is held.
void RelieveDuePressure();
inline void RelievePressure() {
  if (ABSL_PREDICT_FALSE(PressureIsDue())) RelieveDuePressure();
}

// What each slow path of an allocation ends with.
inline void SeeToUpkeep() {
  RelievePressure();
  StartMaintenanceIfWanted();
}

}  // namespace quarry

#endif  // QUARRY_ALLOC_UPKEEP_H_
