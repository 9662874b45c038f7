// A run of pages that holds blocks of one size class, and its descriptor.
//
//   run         | block 0 | block 1 | ... | block n-1 | tail |
//   local       |    1    |    0    | ... |           free blocks in the slab
//   remote      |    0    |    0    | ... |           freed by other threads
//               |<---- was given out ---->|<- fresh ->
//
// The descriptor and both bitmaps lie in the allocator's own memory, so that an
// overflow out of a block cannot reach them, a block is not touched to free it
// or to find it, and blocks are as aligned as their size allows.
//
// A block is in one of three places: with the program or in a magazine (`used`
// counts both, as the slab cannot tell them apart), in the local bitmap, or
// fresh, which is to say never given out since the slab last began again. Fresh
// blocks go out in order of address, so that pages are touched one by one.
//
// Invariant: used + popcount(local) + (blocks - fresh) == blocks; no bit of
//   either bitmap at or above `fresh`.
// Thread-safety: the owner under its cache's lock, or, of an orphan, who holds
//   the lock of its list; `owner` and the remote bitmap: any thread.
// Size: two cache lines, and two bits for each block; one bit where all remote
//   ones fit into the second line.
// Source: slabs of Bonwick 1994; bitmaps of phkmalloc (Kamp 1998).
#ifndef QUARRY_TCACHE_SLAB_H_
#define QUARRY_TCACHE_SLAB_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "arena/arena.h"
#include "arena/filling.h"
#include "arena/run.h"
#include "tcache/magazine.h"
#include "tcache/remote_bitmap.h"
#include "tcache/size_classes.h"

namespace quarry {

class ThreadCache;

// What all slabs of a class have in common: for who has a block's tag, and so its
// class, and need not ask the slab, whose lines its owner writes.
struct alignas(16) SlabGeometry {
  uint32_t start_reciprocal;
  uint32_t block_bytes;
  uint16_t blocks;
  uint16_t remote_words_at;  // From the start of the descriptor.
};

// A list of free blocks that is built front to back.
class BlockList {
 public:
  void Append(void* p) {
    *end_ = static_cast<FreeBlock*>(p);
    end_ = &(*end_)->next;
  }
  // Ends the list and returns its first block, nullptr when it is empty.
  FreeBlock* Finish() {
    *end_ = nullptr;
    return first_;
  }

 private:
  FreeBlock* first_ = nullptr;
  FreeBlock** end_ = &first_;
};

class alignas(64) Slab {
 public:
  // How full a slab is, in quarters, which is how lists of slabs are kept.
  enum Fullness : uint8_t {
    kFull,         // No free block.
    kThreeFourths, // At least three fourths used.
    kHalf,
    kFourth,
    kSparse,
    kEmpty,        // No block used.
    kFullnesses,
  };

 private:
  // One cache line: all that a local free touches besides the bitmap.
  char* const start_;
  Run* const run_;
  const uint32_t start_reciprocal_;
  const uint32_t block_bytes_;
  const uint16_t blocks_;
  const uint16_t size_class_;
  uint16_t used_ = 0;
  uint16_t fresh_ = 0;
  uint16_t first_word_ = 0;  // No bit of the local bitmap is in a lower word.
  // The range of used_ in which fullness_ holds.
  uint16_t fullness_from_ = 0;
  uint16_t fullness_to_ = 0;
  uint16_t resident_ = 0;  // No block from here on was ever given out, or
                           // since its pages were purged.
  Fullness fullness_ : 4 = kEmpty;
  uint8_t populated_pages_ : 3 = 1;

  // For the maintenance thread: in which of its passes it last looked at the
  // slab, how many looks in a row found the same free blocks, or kPurged, and
  // what they were, as a hash.
  static constexpr uint8_t kPurged = 7;
  uint8_t pass_ : 5 = 0;
  uint8_t same_looks_ : 3 = 0;
  uint16_t seen_ = 0;

  // Fewer pages are not worth a system call, nor the fault of their next use,
  // where the next blocks are taken from.
  static constexpr size_t kLeastTailPages = 4;

 public:
  // The tag of its cache, by when the slab came to it: a cache that inherits gets another,
  // and the slab is inherited then. The owner's.
  Tag owner_tag = 0;

  // Neighbours in a list; the list's.
  Slab* next = nullptr;
  Slab* previous = nullptr;

  // The other line, which other threads write. Who may touch the fields above;
  // nullptr for an orphan. Written by the cache that gives the slab up, under
  // the lock of the orphans, or that takes it.
  alignas(64) std::atomic<ThreadCache*> owner{nullptr};

  RemoteBitmap remote;

  // The next on a pending stack; the stack's.
  Slab* pending_next = nullptr;

 private:
  // The words of `remote` where they are so few: a thread that marks a block then
  // takes one line from the owner, and the owner's drain one from that thread, and
  // not two. These must be last.
  static constexpr size_t kNearWords = 4;
  std::atomic<uint64_t> near_words_[kNearWords] = {};

 public:
  // Makes a slab of pages of the arena; nullptr when there is no memory.
  [[nodiscard]] static Slab* Make(Arena* arena, SizeClass size_class,
                                  Filling filling);

  // Gives a slab without used blocks, which is in no list, back to its arena. Aborts with
  // a report if one of its blocks is marked: another thread has freed it wrongly.
  static void Return(Slab* slab);

  // The words of `remote`.
  static std::atomic<uint64_t>* RemoteWords(Slab* slab,
                                            const SlabGeometry& geometry) {
    return reinterpret_cast<std::atomic<uint64_t>*>(
        reinterpret_cast<char*>(slab) + geometry.remote_words_at);
  }

  [[gnu::visibility("hidden")]] static const std::array<SlabGeometry, kClasses>
      kGeometry;

  // Of the class that a slab with this tag has. Requires the tag of a slab, or kNoTag,
  // whose class has no blocks.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static const SlabGeometry& GeometryOf(Tag tag) {
    // ClassOfTag(), and no more instructions than that takes.
    static_assert(sizeof(Magazine) == 2 * sizeof(SlabGeometry));
    return *reinterpret_cast<const SlabGeometry*>(
        reinterpret_cast<const char*>(kGeometry.data()) +
        (tag & (kOwnerUnit - sizeof(Magazine))) / 2);
  }

  // The slab of `p`, whose tag says that it lies in one.
  static Slab* Of(const void* p) {
    return static_cast<Slab*>(PageMap::DescriptorOf(p));
  }

  SizeClass size_class() const { return size_class_; }
  size_t block_bytes() const { return block_bytes_; }
  size_t blocks() const { return blocks_; }
  size_t used() const { return used_; }
  size_t free_blocks() const { return blocks_ - used_; }
  // Whether the next free block was given out before, as far as that is known.
  bool NextIsResident() const { return used_ < fresh_ || fresh_ < resident_; }
  // Of the free blocks that were given out before. At least; purged pages among
  // them count, too.
  size_t ResidentFreeBytes() const {
    return (size_t{resident_} - used_) * block_bytes_;
  }
  char* start() const { return start_; }
  Arena* arena() const { return run_->arena(); }
  // Whether all pages were untouched when the slab was made, or made resident for it.
  bool is_of_new_pages() const { return run_->zeroed; }
  Fullness fullness() const { return fullness_; }

  // The block that contains p, which lies in the slab's run. At or above
  // blocks() for an address in the tail.
  size_t IndexOf(const void* p) const {
    return BlockOf(p).index();
  }
  char* BlockAt(size_t index) const { return start_ + index * block_bytes_; }

  // Whether `p` is where a block starts. Any thread may ask.
  bool IsStart(const void* p) const {
    const BlockOfOffset block = BlockOf(p);
    return block.IsStart() && block.index() < blocks_;
  }

  // Whether `p` is the start of a block that was ever given out.
  bool IsGivenOut(const void* p) const {
    const BlockOfOffset block = BlockOf(p);
    return block.IsStart() && block.index() < fresh_;
  }

  // Whether block `index` is in the local bitmap.
  bool IsFree(size_t index) const {
    return ((local()[index / 64] >> (index % 64)) & 1) != 0;
  }

  // From now on fresh pages are made resident so many at a time, when the first of them is
  // given out: two thirds of the time of as many faults where those are dear. A power of two;
  // with 1, as at first, they become resident as they are touched.
  void PopulateBy(size_t pages) {
    populated_pages_ = static_cast<uint8_t>(pages);
  }

  // So many at most.
  static constexpr size_t kMostPopulatedPages = 4;

  // Moves up to `wanted` free blocks, lowest address first, to `list`, and returns
  // how many. Fresh blocks are taken only when no other is free, and no further
  // than the page that the first of them begins on. UpdateFullness() afterwards.
  size_t TakeBlocks(size_t wanted, BlockList* list);

  // One block given back by the owner. False, with nothing changed, when it is
  // not in use: a double free. UpdateFullness() afterwards.
  [[nodiscard]] bool PutBlock(size_t index) {
    const uint64_t bit = uint64_t{1} << (index % 64);
    uint64_t& word = local()[index / 64];
    if (ABSL_PREDICT_FALSE(index >= fresh_ || (word & bit) != 0)) return false;
    word |= bit;
    if (index / 64 < first_word_) {
      first_word_ = static_cast<uint16_t>(index / 64);
    }
    --used_;
    return true;
  }

  // Several blocks given back: those of word `index` of the bitmap whose bits
  // are set, which are so many. Reports a block that was free already.
  // UpdateFullness() afterwards.
  void PutWord(size_t index, uint64_t word, size_t count);

  // Drains all remote frees, with or without a token: see RemoteBitmap. Then
  // UpdateFullness(), if the slab is to stay.
  size_t Drain();
  size_t DrainAll();
  // Whether DrainAll() would find any.
  bool HasMarks() const { return remote.HasMarks(words()); }
  // In the child of a fork: see RemoteBitmap. Returns whether the caller has the token now.
  [[nodiscard]] bool RepairAfterFork() { return remote.RepairAfterFork(words()); }

  // Gives the pages on which no block in use lies back to the system, and makes
  // the blocks behind the last one in use fresh again. Returns how many calls
  // that took.
  size_t PurgeFreePages();

  // What the maintenance thread does at each of its looks: the above, once, when
  // the last `looks` of them found the same free blocks as this one. Blocks that
  // are free for so long are of a size that the program has turned away from.
  struct Look {
    size_t purges;
    bool is_done;  // There is nothing to do until a block is taken or freed.
  };
  Look LookForIdlePages(uint8_t pass, uint8_t looks);

  // Passes have numbers from 1 to kPasses, and begin again. A slab that comes
  // into a list has been in none, so that it is looked at whatever comes first.
  static constexpr uint8_t kPasses = 31;
  uint8_t pass() const { return pass_; }
  void ForgetPass() { pass_ = 0; }

  // After used() became more, or less: whether the slab belongs in another list.
  bool FullnessHasRisen() const { return used_ > fullness_to_; }
  bool FullnessHasFallen() const { return used_ < fullness_from_; }
  // To be called then, or after each change. Makes a slab without used blocks begin
  // again at its lowest block: what was given out before is resident, and what was not
  // stays untouched for longer.
  void UpdateFullness() {
    if (FullnessHasRisen() || FullnessHasFallen()) SetFullness();
  }

  // Aborts when an invariant does not hold.
  void Verify() const;

 private:
  Slab(Run* run, SizeClass size_class, std::atomic<uint64_t>* remote_words);

  static constexpr size_t Words(SizeClass size_class) {
    return (SlabBlocks(size_class) + 63) / 64;
  }
  static constexpr size_t WordBytes(SizeClass size_class) {
    return RoundUp(Words(size_class) * sizeof(uint64_t), 64);
  }
  static constexpr bool HasNearWords(SizeClass size_class) {
    return Words(size_class) <= kNearWords;
  }
  // The local bitmap follows, and the remote one if it is not near.
  static constexpr size_t DescriptorBytes(SizeClass size_class) {
    return sizeof(Slab) +
           (HasNearWords(size_class) ? 1 : 2) * WordBytes(size_class);
  }
  static constexpr size_t RemoteWordsAt(SizeClass size_class) {
    return HasNearWords(size_class) ? sizeof(Slab) - sizeof(near_words_)
                                    : sizeof(Slab) + WordBytes(size_class);
  }

  // Words() of the slab's class, without a division.
  size_t words() const { return (size_t{blocks_} + 63) / 64; }

  BlockOfOffset BlockOf(const void* p) const {
    return BlockOfOffset(OffsetInGranule(p), start_reciprocal_);
  }
  uint64_t* local() { return reinterpret_cast<uint64_t*>(this + 1); }
  const uint64_t* local() const {
    return reinterpret_cast<const uint64_t*>(this + 1);
  }
  // The first block from `index` on that is free, or that is not, below fresh_;
  // else fresh_.
  template <bool kFree>
  size_t Next(size_t index) const;
  uint16_t HashOfFree() const;
  bool PurgeTail();
  size_t TakeFresh(size_t wanted, BlockList* list);
  void Populate(char* block);
  void Reset();
  void SetFullness();
  void PutDrained(size_t index, uint64_t word);
};

static_assert(sizeof(Slab) == 128, "the owner's line and the others' line");

}  // namespace quarry

#endif  // QUARRY_TCACHE_SLAB_H_
