#include "alloc/rooms.h"

#include <stdint.h>

#include <atomic>

#include "absl/base/optimization.h"
#include "arena/arena.h"
#include "arena/process_arenas.h"
#include "arena/report.h"
#include "tcache/remote_free.h"
#include "tcache/slab.h"

namespace quarry {

void ReportWildPointer(const char* call, const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(void*) != 0) {
    ReportMisalignedPointer(call, p);
  }
  if (const Run* run = Arena::RunContaining(p)) {
    if (!run->IsInUse()) {
      ReportFreedLargeBlock(call, p);
    }
    ReportInteriorPointer(call, p, run->start, run->bytes());
  }
  if (const Huge* huge = huge_blocks.Containing(p)) {
    if (!huge->in_use.load(std::memory_order_relaxed)) {
      ReportFreedLargeBlock(call, p);
    }
    ReportInteriorPointer(call, p, huge->start, huge->bytes);
  }
  if (PageMap::TagOf(p) == kNoTag) ReportUnmanagedPointer(call, p);
  ReportForeignPointer(call, p);
}

Run* RunAt(const char* call, const void* p) {
  Run* run = Arena::RunOf(p);
  if (ABSL_PREDICT_FALSE(run == nullptr)) ReportWildPointer(call, p);
  return run;
}

Huge* HugeAt(const char* call, const void* p) {
  Huge* huge = HugeBlocks::Of(p);
  if (ABSL_PREDICT_FALSE(huge == nullptr)) ReportWildPointer(call, p);
  return huge;
}

size_t UsableBytesFor(const char* call, const void* p) {
  switch (RoomOf(PageMap::TagOf(p))) {
    case Room::kSlab: {
      const Slab* slab = Slab::Of(p);
      CheckIsBlock(call, slab, p);
      return slab->block_bytes();
    }
    case Room::kRun:
      return RunAt(call, p)->bytes();
    case Room::kHuge:
      return HugeAt(call, p)->bytes;
    case Room::kNone:
      break;
  }
  ReportWildPointer(call, p);
}

}  // namespace quarry
