// Blocks that share a word of their slab's bitmaps: what gathers frees before they are put
// there.
//
//   place   63               16 15          9 8   7 6          0
//           [     granule      ][   class    ][ 0  ][   word   ]
//   bits    bit i: block 64 * word + i
//
// Whether a block is of a word is told by one comparison of places, and by its
// address and its tag alone: nothing of the slab is read, whose lines may be in
// another core's cache, or a while in coming.
//
// Thread-safety: none of its own.
#ifndef QUARRY_TCACHE_BLOCK_WORD_H_
#define QUARRY_TCACHE_BLOCK_WORD_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "arena/page_map.h"
#include "tcache/magazine.h"
#include "tcache/size_classes.h"

namespace quarry {

struct BlockWord {
  uint64_t place;  // 0: of no block.
  uint64_t bits;

  // Where block `index` has its bit, of the slab with this tag in which p lies.
  static uint64_t PlaceOf(const void* p, Tag tag, size_t index) {
    const uintptr_t granule =
        reinterpret_cast<uintptr_t>(p) & ~(kGranuleBytes - 1);
    // Without the owner, whose bits are those above the granule's.
    return (granule | static_cast<uint16_t>(tag << kOffsetShift)) + index / 64;
  }
  static uint64_t BitOf(size_t index) { return uint64_t{1} << (index % 64); }

  // Adds block `index` of this place. False, with nothing changed, if it is there.
  [[nodiscard]] bool Add(size_t index) {
    const uint64_t more = bits | BitOf(index);
    if (more == bits) return false;
    bits = more;
    return true;
  }

  // The start of the slab.
  void* slab_start() const {
    return reinterpret_cast<void*>(place & ~(kGranuleBytes - 1));
  }
  Tag magazine_offset() const {
    return static_cast<Tag>(place % kGranuleBytes >> kOffsetShift) &
           ~Tag{sizeof(Magazine) - 1};
  }
  SizeClass size_class() const { return ClassOfTag(magazine_offset()); }
  size_t word() const { return place & (kWordsInPlace - 1); }

  // The first of the blocks. Requires that there is one.
  void* first_block() const {
    const size_t index =
        word() * 64 + static_cast<size_t>(std::countr_zero(bits));
    return static_cast<char*>(slab_start()) + index * BlockBytes(size_class());
  }

 private:
  static constexpr int kOffsetShift = 4;
  static constexpr uint64_t kWordsInPlace = 128;
  static_assert(sizeof(Magazine) << kOffsetShift > kWordsInPlace);
  static_assert(kOwnerUnit << kOffsetShift == kGranuleBytes);
  static_assert(kGranuleBytes / BlockBytes(kEightByteClass) / 64 <=
                kWordsInPlace);
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_BLOCK_WORD_H_
