// How many blocks of other owners a thread may keep when it frees them.
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
  // Neither has a value of its own: see the constructors.
  uint16_t blocks_[kClasses];
  uint32_t all_;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_FOREIGN_ALLOWANCE_H_
