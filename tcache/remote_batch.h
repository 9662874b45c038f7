// Blocks of other threads' slabs that a thread has freed and has yet to mark in
// the slabs' remote bitmaps: gathered by word, so that one addition marks many.
//
//   entries   | slab, word, bits | - | slab, word, bits | ... |
//                 ^ where the block's class and owner lead to; another word
//                   that is led there takes the place, and the old is marked
//
// It is not for the additions alone. A locked instruction waits for the stores
// before it, and no load behind it begins: a thread that takes messages from a
// queue, reads and frees them waits for the line of each in turn if every free
// has one.
//
// What is held is out of its owner's reach, as what a magazine holds is. So the
// batch is full, and all of it is marked, with kMostBytes in blocks.
//
// A block that is held is in use to its slab, which therefore stays.
//
// Thread-safety: the owner thread alone, or who holds the whole cache after
//   that thread is gone.
// Ordering: a word leaves before it is marked, and an entry that changes has no
//   bits meanwhile. So the child of a fork at any moment marks no block twice, and
//   none that was not freed; it may lose those of one word.
// Invariant: no block is held twice. An entry without bits has no slab.
// Cost: no atomic operation.
// Size: 32 bytes for each entry.
// Source: the remote deallocation cache of snmalloc (Lietar et al. 2019), which
//   gathers lists by the receiving thread.
#ifndef QUARRY_TCACHE_REMOTE_BATCH_H_
#define QUARRY_TCACHE_REMOTE_BATCH_H_

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "arena/page_map.h"
#include "tcache/size_classes.h"
#include "tcache/slab.h"

namespace quarry {

class RemoteBatch {
 public:
  static constexpr uint32_t kMostBytes = 64 * 1024;

  // Blocks of one word of a slab's bitmap. The address of one of them tells later
  // whether the slab is still there: freed twice, it may not be.
  struct Word {
    Slab* slab;
    uint64_t bits;
    const void* block;
    uint32_t index;
    SizeClass size_class;
  };

  // Adds the block at p, if others of its word are held and the batch does not
  // become full. Otherwise false, with nothing changed: also if p is no block,
  // or is held. `slab` and `tag` are what the page map has for p, whatever it is.
  ABSL_ATTRIBUTE_ALWAYS_INLINE bool TryAddToWord(const void* p, const void* slab,
                                                 Tag tag) {
    Word& entry = entries_[EntryOf(tag)];
    if (entry.slab != slab || slab == nullptr) return false;
    const SlabGeometry& geometry = Slab::kGeometry[entry.size_class];
    const size_t block = Slab::FastIndexOf(p, entry.size_class);
    const uint64_t bit = uint64_t{1} << (block % 64);
    const uint32_t bytes = bytes_ + geometry.block_bytes;
    if (entry.index != block / 64 || (entry.bits & bit) != 0 ||
        bytes >= kMostBytes || !geometry.HasBlock(block, p)) {
      return false;
    }
    entry.bits |= bit;
    bytes_ = bytes;
    return true;
  }

  // Adds `block` of `slab`, which is of this class and whose owner `tag` tells, at p.
  // False, with nothing changed, if the block is held: a double free. *displaced
  // is the word to be marked in its stead, with no bits if there is none.
  [[nodiscard]] bool Add(Slab* slab, const void* p, size_t block,
                         SizeClass size_class, Tag tag, Word* displaced) {
    Word& entry = entries_[EntryOf(tag)];
    const uint64_t bit = uint64_t{1} << (block % 64);
    const uint32_t index = static_cast<uint32_t>(block / 64);
    *displaced = {};
    if (entry.slab == slab && entry.index == index) {
      if ((entry.bits & bit) != 0) return false;
      entry.bits |= bit;
    } else {
      *displaced = entry;
      entry.bits = 0;
      std::atomic_signal_fence(std::memory_order_release);
      entry.slab = slab;
      entry.block = p;
      entry.index = index;
      entry.size_class = size_class;
      std::atomic_signal_fence(std::memory_order_release);
      entry.bits = bit;
    }
    bytes_ += Slab::kGeometry[size_class].block_bytes;
    return true;
  }

  bool IsFull() const { return bytes_ >= kMostBytes; }

  // Calls mark(word) for each word, which the batch then does not hold any more.
  template <typename Mark>
  void Empty(Mark mark) {
    if (bytes_ == 0) return;
    for (Word& entry : entries_) {
      if (entry.bits == 0) continue;
      const Word word = entry;
      Clear(&entry);
      mark(word);
    }
    bytes_ = 0;
  }

  // In the child of a fork, whatever the thread was in the midst of.
  void RepairAfterFork() {
    bytes_ = 0;
    for (Word& entry : entries_) {
      if (entry.bits == 0) {
        Clear(&entry);
      } else {
        bytes_ += static_cast<uint32_t>(std::popcount(entry.bits)) *
                  Slab::kGeometry[entry.size_class].block_bytes;
      }
    }
  }

 private:
  // Not below the number of fast classes: those of one owner do not take each
  // other's place.
  static constexpr int kEntryBits = 6;
  static constexpr size_t kEntries = size_t{1} << kEntryBits;
  static_assert(kFastClasses <= kEntries);

  // The upper bits of a product, round the table and round again: from a class to
  // the next it is a little more than one entry, and from an owner to the next
  // nine.
  static size_t EntryOf(Tag tag) {
    constexpr Tag kOwnerStride = 9u << (32 - kEntryBits);
    constexpr Tag kClassesPerOwner = kOwnerUnit / MagazineOffset(1);
    constexpr Tag kClassStride =
        (1u << (32 - kEntryBits)) + kOwnerStride / kClassesPerOwner;
    static_assert(uint64_t{kClassStride} * (kFastClasses - 1) <
                  uint64_t{1} << 32);
    return tag * (kClassStride / MagazineOffset(1)) >> (32 - kEntryBits);
  }

  static void Clear(Word* entry) {
    entry->bits = 0;
    std::atomic_signal_fence(std::memory_order_release);
    entry->slab = nullptr;
  }

  // Since it was last emptied: what was displaced is counted, too.
  uint32_t bytes_ = 0;
  Word entries_[kEntries] = {};
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_REMOTE_BATCH_H_
