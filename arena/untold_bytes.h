// Bytes that come free a few at a time, until they are work for the maintenance thread.
//
// Of what a place frees, no single call may be worth the thread's waking. So the place
// counts what it has freed since it told the thread.
//
// Thread-safety: none of its own; what counts is under the lock of the place.
#ifndef QUARRY_ARENA_UNTOLD_BYTES_H_
#define QUARRY_ARENA_UNTOLD_BYTES_H_

#include <cstddef>

#include "arena/maintenance_signal.h"

namespace quarry {

class UntoldBytes {
 public:
  // So many more are free. Tells the thread if it was not told of more than `most_bytes`.
  void Add(size_t bytes, size_t most_bytes = MaintenanceSignal::kNotedBytes) {
    bytes_ += bytes;
    if (bytes_ <= most_bytes) return;
    bytes_ = 0;
    maintenance_signal.NoteWork();
  }

 private:
  size_t bytes_ = 0;
};

}  // namespace quarry

#endif  // QUARRY_ARENA_UNTOLD_BYTES_H_
