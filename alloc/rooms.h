// Which room of the heap a pointer is of, and what lies there.
#ifndef QUARRY_ALLOC_ROOMS_H_
#define QUARRY_ALLOC_ROOMS_H_

#include <stddef.h>

#include "arena/huge.h"
#include "arena/page_map.h"
#include "arena/run.h"

namespace quarry {

// What a pointer is, as its tag says.
enum class Room { kNone, kSlab, kRun, kHuge };

inline Room RoomOf(Tag tag) {
  if (tag == kNoTag) return Room::kNone;
  if (tag == kRunTag) return Room::kRun;
  if (tag == kHugeTag) return Room::kHuge;
  return Room::kSlab;
}

// Aborts with what can be said about `p`, which is no block in use.
[[noreturn]] void ReportWildPointer(const char* call, const void* p);

// The run or huge block that starts at `p` and is in use; aborts if there is none.
Run* RunAt(const char* call, const void* p);
Huge* HugeAt(const char* call, const void* p);

// What the caller of `call` may write at `p`, a block in use of any room; else aborts.
size_t UsableBytesFor(const char* call, const void* p);

}  // namespace quarry

#endif  // QUARRY_ALLOC_ROOMS_H_
