// How many blocks of other owners a thread may keep when it frees them.
//
// As a rule they go back to their owners, so that two threads do not share a cache line
// because one freed what the other allocated, and memory does not wander from thread to
// thread. But an owner that waits uses none of them, and who frees them would make new
// pages resident for its own: of threads that replace what others have allocated, in turn,
// each would come to have as much as all hold. So for each slab of new pages a thread may
// take some of the next such blocks that it frees into its magazines, if it is short of the
// class, and they are no smaller than two lines (ThreadCache::TryKeepForeign()).
#ifndef QUARRY_TCACHE_FOREIGN_ALLOWANCE_H_
#define QUARRY_TCACHE_FOREIGN_ALLOWANCE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "arena/report.h"
#include "tcache/size_classes.h"

namespace quarry {

// Of how many of the next blocks of other owners that are freed, of each class, the magazine
// may take those that it is short of (ThreadCache::TryKeepForeign()).
//
// Thread-safety: none; the owner's.
// Invariant: IsAny() iff a class has some.
// Size: two bytes for a class, and what IsAny() reads behind them, beside the remote batch,
//   which each free of such a block reads anyway.
class ForeignAllowance {
 public:
  constexpr ForeignAllowance() : blocks_{}, all_(0) {}
  // Without a touch of it, in memory that is zero.
  struct InZeroMemory {};
  explicit ForeignAllowance(InZeroMemory) {}

  bool IsAny() const { return all_ != 0; }

  // Whether there is ever any of the class.
  static constexpr bool MayHave(SizeClass size_class) {
    return BlockBytes(size_class) >= kLeastBlockBytes;
  }

  // For a slab of new pages, if the class may have any.
  void AddForSlab(SizeClass size_class) {
    if (MayHave(size_class)) Add(size_class, kSlabsForSlab * SlabBlocks(size_class));
  }

  // Of `blocks` more of the class, up to UINT16_MAX in all.
  void Add(SizeClass size_class, size_t blocks) {
    uint16_t& of_class = blocks_[size_class];
    const size_t more = std::min<size_t>(blocks, UINT16_MAX - of_class);
    of_class = static_cast<uint16_t>(of_class + more);
    all_ += static_cast<uint32_t>(more);
  }

  // One of the class less; false if there is none.
  [[nodiscard]] bool TryUse(SizeClass size_class) {
    uint16_t& of_class = blocks_[size_class];
    if (of_class == 0) return false;
    --of_class;
    --all_;
    return true;
  }

  // None of any class. Without a store, where there is none.
  void Clear() {
    if (all_ == 0) return;
    std::fill(std::begin(blocks_), std::end(blocks_), 0);
    all_ = 0;
  }

  // Aborts if the invariant is broken.
  void Verify() const {
    uint32_t sum = 0;
    for (const uint16_t of_class : blocks_) sum += of_class;
    QUARRY_CHECK(sum == all_);
  }

 private:
  // Two lines, which a processor fetches together: a smaller block that another thread has
  // allocated would lie on a line with several that it has in use, a larger one at its ends.
  static constexpr size_t kLeastBlockBytes = 128;
  // So many slabs' worth of blocks of others.
  static constexpr size_t kSlabsForSlab = 8;

  // Neither has a value of its own: see the constructors.
  uint16_t blocks_[kClasses];
  uint32_t all_;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_FOREIGN_ALLOWANCE_H_
