// Blocks of other threads' slabs that a thread has freed and has yet to mark in
// the slabs' remote bitmaps: gathered by word, so that one addition marks many.
//
//   entries   | place, bits | - | place, bits | ... |
//                 ^ where the block's class and owner lead to; another word
//                   that is led there takes its place, and the old is marked
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
//   that thread is gone; frees(): any thread.
// Ordering: a word leaves before it is marked, and an entry that changes has no
//   bits meanwhile. So the child of a fork at any moment marks no block twice, and
//   none that was not freed; it may lose those of one word.
// Invariant: no block is held twice. An entry without bits has no place.
// Cost: no locked instruction.
// Size: 16 bytes for each entry.
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
#include "arena/report.h"
#include "tcache/block_word.h"
#include "tcache/magazine.h"
#include "tcache/size_classes.h"
#include "tcache/slab.h"

namespace quarry {

// A block of a slab that may be another thread's, as its address and its tag tell.
struct RemoteBlock {
  Tag tag;
  uint32_t index;
  uint64_t place;  // See BlockWord.

  ABSL_ATTRIBUTE_ALWAYS_INLINE const SlabGeometry& geometry() const {
    return Slab::GeometryOf(tag);
  }

  // False if p is not the start of a block. Requires tag < kNobody.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool Find(const void* p, Tag tag,
                                                RemoteBlock* block) {
    block->tag = tag;
    const SlabGeometry& geometry = block->geometry();
    const BlockOfOffset found(OffsetInGranule(p), geometry.start_reciprocal);
    if (ABSL_PREDICT_FALSE(!found.IsStart() ||
                           found.index() >= geometry.blocks)) {
      return false;
    }
    block->index = static_cast<uint32_t>(found.index());
    block->place = BlockWord::PlaceOf(p, tag, found.index());
    return true;
  }
};

class RemoteBatch {
 public:
  static constexpr size_t kMostBytes = 128 * 1024;

  static constexpr size_t kEntries = 64;

  constexpr RemoteBatch() : entries_{} {}
  // Without a touch of most entries, which a thread without remote frees does not
  // need.
  struct InZeroMemory {};
  explicit RemoteBatch(InZeroMemory) {}

  // Adds the block if others of its word are held. False, with nothing changed,
  // if none is, or it is one of them.
  ABSL_ATTRIBUTE_ALWAYS_INLINE bool TryAddToWord(const RemoteBlock& block) {
    BlockWord& entry = EntryOf(block);
    if (entry.place != block.place || !entry.Add(block.index)) return false;
    Count(block);
    return true;
  }

  // Adds the block after TryAddToWord() did not. False, with nothing changed, if
  // it is held: a double free. *displaced is the word to be marked in its stead,
  // with no bits if there is none.
  [[nodiscard]] bool Add(const RemoteBlock& block, BlockWord* displaced) {
    BlockWord& entry = EntryOf(block);
    if (ABSL_PREDICT_FALSE(entry.place == block.place)) return false;
    *displaced = entry;
    entry.bits = 0;
    std::atomic_signal_fence(std::memory_order_release);
    entry.place = block.place;
    std::atomic_signal_fence(std::memory_order_release);
    entry.bits = BlockWord::BitOf(block.index);
    Count(block);
    return true;
  }

  // Whether the block is among those that are held.
  bool Holds(const RemoteBlock& block) {
    const BlockWord& entry = EntryOf(block);
    return entry.place == block.place && (entry.bits & BlockWord::BitOf(block.index)) != 0;
  }

  bool IsFull() const { return held_bytes_ >= kMostBytes; }

  // What is held, for who counts it: the words with bits.
  const BlockWord (&entries() const)[kEntries] { return entries_; }

  // How many blocks of other owners the threads with this batch have freed, those
  // included that were not added to it.
  // Relaxed: a count, which orders nothing.
  uint64_t frees() const { return frees_.load(std::memory_order_relaxed); }
  ABSL_ATTRIBUTE_ALWAYS_INLINE void CountFree() {
    // One writer: no locked instruction.
    frees_.store(frees() + 1, std::memory_order_relaxed);
  }

  // Calls mark(word) for each word, which the batch then does not hold any more.
  template <typename Mark>
  void Empty(Mark mark) {
    if (held_bytes_ == 0) return;
    for (BlockWord& entry : entries_) {
      if (entry.bits == 0) continue;
      const BlockWord word = entry;
      Clear(&entry);
      mark(word);
    }
    held_bytes_ = 0;
  }

  // Aborts if the invariant is broken.
  void Verify() const {
    size_t bytes = 0;
    for (const BlockWord& entry : entries_) {
      if (entry.bits == 0) {
        QUARRY_CHECK(entry.place == 0);
        continue;
      }
      const SizeClass size_class = entry.size_class();
      QUARRY_CHECK(size_class >= kEightByteClass && size_class < kClasses);
      const auto bits = static_cast<size_t>(std::bit_width(entry.bits));
      QUARRY_CHECK(entry.word() * 64 + bits <= SlabBlocks(size_class));
      bytes += BytesOf(entry);
      // A slab that changed hands has an entry for each owner, of different blocks.
      for (const BlockWord* other = entries_; other != &entry; ++other) {
        QUARRY_CHECK(other->place != entry.place || (other->bits & entry.bits) == 0);
      }
    }
    QUARRY_CHECK(bytes <= held_bytes_);
  }

  // In the child of a fork, whatever the thread was in the midst of.
  void RepairAfterFork() {
    size_t bytes = 0;
    for (BlockWord& entry : entries_) {
      if (entry.bits != 0) {
        bytes += BytesOf(entry);
      } else if (entry.place != 0) {
        Clear(&entry);
      }
    }
    // Without a store where it is right: that would copy the page.
    if (held_bytes_ != bytes) held_bytes_ = bytes;
  }

 private:
  static constexpr int kEntryBits = std::countr_zero(kEntries);

  // The classes of one owner do not take each other's place, but for the eight smallest
  // and the eight largest.
  //
  // The upper bits of a product, round the table and round again: from a class to
  // the next it is a little more than one entry, and from an owner to the next
  // nine.
  BlockWord& EntryOf(const RemoteBlock& block) {
    constexpr Tag kOwnerStride = 9u << (32 - kEntryBits);
    constexpr Tag kClassesPerOwner = kOwnerUnit / MagazineOffset(1);
    constexpr Tag kClassStride =
        (1u << (32 - kEntryBits)) + kOwnerStride / kClassesPerOwner;
    constexpr SizeClass kApart = kClasses - 1 - kEightByteClass - 8;
    static_assert(uint64_t{kClassStride} * kApart < uint64_t{1} << 32);
    return entries_[block.tag * (kClassStride / MagazineOffset(1)) >>
                    (32 - kEntryBits)];
  }

  static size_t BytesOf(const BlockWord& word) {
    return static_cast<size_t>(std::popcount(word.bits)) *
           BlockBytes(word.size_class());
  }

  ABSL_ATTRIBUTE_ALWAYS_INLINE void Count(const RemoteBlock& block) {
    CountFree();
    held_bytes_ += block.geometry().block_bytes;
  }

  static void Clear(BlockWord* entry) {
    entry->bits = 0;
    std::atomic_signal_fence(std::memory_order_release);
    entry->place = 0;
  }

  // What was displaced since it was last emptied counts, too.
  size_t held_bytes_ = 0;
  std::atomic<uint64_t> frees_{0};
  BlockWord entries_[kEntries];
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_REMOTE_BATCH_H_
