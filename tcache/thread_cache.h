// What one thread allocates from: a magazine for each size class, and behind
// them the slabs that the thread owns.
//
//   malloc ->  TryPop  -> magazine . . . . . . . . no lock, no atomic
//                            | empty
//           TryTakeFor -> the spare magazine . . . no lock, no atomic
//                            | none
//              Refill  -> depot of full magazines
//                         slabs, fullest first . . the cache's own lock
//                         orphans of the arena
//                         slabs of idle threads
//                         the arena . . . . . . .  the arena's lock
//
//   free   ->  TryPush -> magazine of the owner
//      |                     | full
//      |      Overflow -> the spare magazine, and what that was to the depot
//      |                     | full
//      |   TryPushCold -> notes, and from there to the slabs
//      | not ours
//      `-> KeepForeign -> magazine, or
//    FreeRemotelyLater -> remote batch, and from there to bitmaps of slabs
//
//   TakeRun, FreeRun -> page runs, by size . . . . the cache's own lock
//
// Blocks of slabs that the thread does not own go back to their owners, but for some that
// it keeps instead of making new pages resident (foreign_allowance.h).
//
// A magazine that overflows moves away whole, and a refill takes a whole one
// back: neither walks a list of blocks. It moves to where the spare magazine of
// the class is, and the spare to the depot. A spare that is taken back may grow
// to the size of two, and is then cut in half: so a thread whose need rises and
// falls about the edge of a magazine comes to the slow path once in as many
// calls as a magazine has blocks, and not with every other one.
// Capacities begin small and double when a magazine runs empty or over, up to a bound
// (cache_bounds.h). So what a thread keeps out of reach of others is small, and most of
// what it keeps lies in the depot, which is guarded by the lock: the maintenance thread
// takes from there what was not used for a while (Tidy).
//
// When the depot is full, more is being freed than will be wanted soon, and a class
// of blocks of up to 8 KiB turns cold: its frees take the slow path, which notes
// the address of the block and does not touch the block, since that would bring a
// line into the cache for the sake of a link. Sixty-four such notes at a time go to
// the bitmaps of their slabs. The class is warm again when half of the depot has
// been used up, or is given back since memory is wanted for something else. Large
// blocks are flushed by the magazine instead.
//
// Thread-safety: magazines, spares, notes and the remote batch belong to the owner
//   thread; statistics have the system copy them (racing_copy.h). All else is
//   guarded by the cache's lock, which is biased towards the owner: others are
//   fork, statistics, Verify(), Tidy() and LendSlabs(), which have all threads fenced for it.
//   The pending stack takes pushes of any thread.
// Invariant: each slab in the lists has this cache as its owner.
// Source: Bonwick and Adams 2001 (magazines, depot); Evans 2006 (thread cache).
#ifndef QUARRY_TCACHE_THREAD_CACHE_H_
#define QUARRY_TCACHE_THREAD_CACHE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "arena/arena.h"
#include "arena/filling.h"
#include "arena/lock.h"
#include "arena/maintenance_signal.h"
#include "arena/page_map.h"
#include "arena/untold_bytes.h"
#include "tcache/biased_lock.h"
#include "tcache/cache_bounds.h"
#include "tcache/foreign_allowance.h"
#include "tcache/magazine.h"
#include "tcache/pending_stack.h"
#include "tcache/remote_batch.h"
#include "tcache/run_cache.h"
#include "tcache/size_classes.h"
#include "tcache/slab.h"
#include "tcache/slab_list.h"
#include "tcache/slab_pass.h"
#include "tcache/thread_state.h"

namespace quarry {

// From (bytes + 15) / 16 to MagazineOffset() of the class.
[[gnu::visibility("hidden")]] extern const std::array<
    uint16_t, kSmallMaxBytes / kMinAlignmentBytes + 1>
    magazine_offsets;

class alignas(64) ThreadCache {
  // First, since tags hold offsets from the start of the cache.
  Magazine magazines_[kClasses] = {};

 public:
  // Sums over the life of the cache, and of those that had its memory before.
  struct Counters {
    uint64_t refills = 0;         // Magazines filled from slabs.
    uint64_t flushes = 0;         // Magazines emptied into slabs.
    uint64_t drained_blocks = 0;  // Remote frees taken in.
    uint64_t slabs_made = 0;
    uint64_t slabs_returned = 0;
    uint64_t adoptions = 0;
  };

  // What Statistics() of one class says.
  struct ClassStatistics {
    size_t slabs;
    size_t used_blocks;  // All but the free ones: with the program, or as follows.
    size_t free_blocks;  // In slabs.
    size_t depot_blocks;
    // In magazines, in notes, and in remote batches, which threads have of each other.
    size_t out_of_reach_blocks;
  };

  // Bytes of page runs that are kept.
  size_t CachedRunBytes() const { return runs_unlocked().cached_bytes(); }

  // One for nobody: no_cache.
  constexpr ThreadCache()
      : lock_(LockRank::kCache), notes_{} {}
  // In memory that is zero, and whose last page this does not touch: what gets no value
  // here has the one that it is to begin with. The compiler must not see where the zeros
  // come from, or it may take the stores of them for dead.
  using InZeroMemory = RemoteBatch::InZeroMemory;
  explicit ThreadCache(InZeroMemory in_zero_memory)
      : lock_(LockRank::kCache),
        foreign_allowance_(ForeignAllowance::InZeroMemory()),
        remote_batch_(in_zero_memory),
        runs_(RunCache::InZeroMemory()) {}
  ThreadCache(const ThreadCache&) = delete;
  ThreadCache& operator=(const ThreadCache&) = delete;

  // --- The fast paths, of the calling thread. ---

  // A block of at least `bytes`, or nullptr if there is none at hand.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static void* TryPop(size_t bytes) {
    if (ABSL_PREDICT_FALSE(bytes > kSmallMaxBytes)) return nullptr;
    Magazine* magazine = MagazineAt(MagazineOffsetFor(bytes));
    if (ABSL_PREDICT_FALSE(magazine->head == nullptr)) return nullptr;
    return magazine->Pop();
  }

  // MagazineOffset() of the class that serves `bytes`, at most kSmallMaxBytes.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static Tag MagazineOffsetFor(size_t bytes) {
    return magazine_offsets[(bytes + kMinAlignmentBytes - 1) /
                            kMinAlignmentBytes];
  }

  // Below kOwnerUnit if the thread owns the slabs with this tag: MagazineOf() is then
  // their magazine. Also where the address that has the tag is no block: the following
  // say so.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static Tag OffsetOf(Tag tag) {
    return tag - thread_state.tag;
  }
  static Tag TagOfOffset(Tag offset) { return offset + thread_state.tag; }
  ABSL_ATTRIBUTE_ALWAYS_INLINE static Magazine* MagazineOf(Tag tag) {
    return reinterpret_cast<Magazine*>(
        reinterpret_cast<uintptr_t>(thread_state.origin) + tag);
  }
  // By an offset as magazine_offsets has them.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static Magazine* MagazineAt(Tag offset) {
    return reinterpret_cast<Magazine*>(
        reinterpret_cast<char*>(thread_state.cache) + offset);
  }

  // The magazine for `p`, if there is one; else false.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool FindMagazine(const void* p,
                                                        Magazine** magazine) {
    return FindMagazineBy(thread_state.tag, p, magazine);
  }

  // The same for C++'s sized delete: false also until EnableSizedDelete().
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool FindMagazineForDelete(
      const void* p, Magazine** magazine) {
    return FindMagazineBy(thread_state.delete_tag, p, magazine);
  }
  static bool SizedDeleteIsEnabled() {
    return thread_state.delete_tag == thread_state.tag;
  }
  // For the calling thread, until its tag changes; without effect if it has none.
  static void EnableSizedDelete() {
    if (thread_state.tag != 0) thread_state.delete_tag = thread_state.tag;
  }

  // Frees `p`, whose magazine this is, if it is the start of a block, not the one
  // freed last, and the class is warm. Otherwise false, with nothing changed.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool TryPush(Magazine* magazine,
                                                   void* p) {
    if (ABSL_PREDICT_FALSE(!magazine->IsBlockStart(p))) return false;
    if (ABSL_PREDICT_FALSE(magazine->head == p)) return false;
    if (ABSL_PREDICT_FALSE(magazine->Push(p))) Overflow(magazine);
    return true;
  }

  // The same for a caller who knows the size that was asked for: false also if
  // a block of the class does not serve such requests.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool TryPushSized(Magazine* magazine,
                                                        void* p, size_t bytes) {
    if (ABSL_PREDICT_FALSE(!magazine->ServesRequest(bytes))) return false;
    if (ABSL_PREDICT_FALSE(magazine->head == p)) return false;
    if (ABSL_PREDICT_FALSE(magazine->Push(p))) Overflow(magazine);
    return true;
  }

  // That magazine if p is the start of a block and the class is warm; else
  // nullptr.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static Magazine* WarmMagazineOf(
      const void* p) {
    Magazine* magazine;
    if (ABSL_PREDICT_FALSE(!FindMagazine(p, &magazine))) return nullptr;
    return ABSL_PREDICT_TRUE(magazine->IsBlockStart(p)) ? magazine : nullptr;
  }

  // --- The slow paths, of the calling thread. ---

  // Frees `p`, which is `block` of another thread's slab, by keeping it for the thread's own
  // next request of the class: if it is short of such blocks, and has made pages resident for
  // others of the class. Otherwise false, and the block is as it was.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool TryKeepForeign(void* p, const RemoteBlock& block) {
    return ABSL_PREDICT_FALSE(thread_state.cache->foreign_allowance_.IsAny()) &&
           KeepForeign(p, block);
  }
  // Whether `p`, whose slab has this tag, is what was last put into the magazine of its class.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool IsLastPushed(Tag tag, const void* p) {
    return thread_state.cache->magazines_[ClassOfTag(tag)].head == p;
  }

  // A block of `size_class` from the magazine or the spare one, else nullptr.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static void* TryTake(SizeClass size_class) {
    ThreadCache* const cache = thread_state.cache;
    Magazine& magazine = cache->magazines_[size_class];
    if (ABSL_PREDICT_TRUE(magazine.head != nullptr)) return magazine.Pop();
    return cache->TakeSpare(size_class);
  }
  // The same of the class for `bytes` <= kSmallMaxBytes. Callers may, but need not, have
  // seen that TryPop() has none.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static void* TryTakeFor(size_t bytes) {
    return TryTake(ClassOfTag(MagazineOffsetFor(bytes)));
  }

  // Whether the thread has a cache and is to use its magazines, and `bytes` are of a
  // class: AllocateFast() then does what Allocate() does, in less time.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool IsOnFastPath(size_t bytes) {
    return bytes <= kSmallMaxBytes && thread_state.tag != 0;
  }
  [[nodiscard]] ABSL_ATTRIBUTE_ALWAYS_INLINE static void* AllocateFast(
      size_t bytes) {
    return thread_state.cache->AllocateOwn(
        ClassOfTag(MagazineOffsetFor(bytes)));
  }

  // Frees `p`, whose magazine this is, if it is the start of a block and the class
  // is cold. Otherwise false, with nothing changed. Then FlushNotes() if the notes
  // are full.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool TryPushCold(const Magazine* magazine,
                                                       void* p,
                                                       bool* notes_are_full) {
    return ABSL_PREDICT_TRUE(magazine->start_limit == 0 &&
                             magazine->IsBlockStartEvenIfCold(p)) &&
           TryNote(p, notes_are_full);
  }

  // The same for a caller who knows the size that was asked for: false also if a
  // block of the class does not serve such requests.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool TryPushColdSized(
      const Magazine* magazine, void* p, size_t bytes, bool* notes_are_full) {
    return ABSL_PREDICT_TRUE(bytes <= kSmallMaxBytes &&
                             magazine->ServesRequestWhenCold(bytes) &&
                             magazine->IsBlockStartEvenIfCold(p)) &&
           TryNote(p, notes_are_full);
  }

  // Arena::TryGrow() of the run's arena; if that has no room, once the thread has given
  // up what it keeps right behind the run.
  [[nodiscard]] static size_t TryGrowRun(Run* run, size_t least_pages,
                                         size_t most_pages);

  // A block of `size_class`, making a cache for the thread if need be; nullptr
  // when there is no memory.
  [[nodiscard]] static void* Allocate(SizeClass size_class);

  // Frees a block of `slab`, whoever owns it. Aborts if `p` is no block in use.
  static void Free(Slab* slab, void* p);

  // The same for a block of many bytes, which realloc() has moved away from since it is to
  // be larger. Blocks of a size that was outgrown are seldom wanted next, and would keep
  // slabs from being empty.
  static void FreeOutgrown(Slab* slab, void* p);

  // Where a page run of the thread's arena starts that it keeps, of MediumBytes(bytes),
  // or up to MostMediumBytes() if it keeps none; nullptr if there is none. What it holds
  // is not known. Requires bytes > kSlabsOnlyMaxBytes, and a cache.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static void* TakeRun(size_t bytes) {
    if (ABSL_PREDICT_FALSE(bytes > RunCache::kMostRunBytes)) return nullptr;
    ThreadCache* const cache = thread_state.cache;
    const size_t list = RunCache::ListFor(bytes);
    if (ABSL_PREDICT_FALSE(!cache->lock_.TryAcquireByBias())) {
      return cache->TakeRunUnbiased(list);
    }
    void* const start = cache->runs_.Take(list);
    cache->lock_.ReleaseByBias();
    return start;
  }

  // To be called by the owner before it asks the arena for a run of so many bytes: slabs
  // come free where the run would be of fresh pages, while free blocks keep them.
  void MakeRoomForRun(size_t bytes) {
    if (ABSL_PREDICT_FALSE(WantsBlocksBackFor(bytes))) GiveBlocksBackUnlocked();
  }

  // Frees the run that starts at `p`, for which HomeTagOf() told kRunTag, by
  // keeping it, if that is possible with a look at it alone. Otherwise false, and the
  // run is as it was.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool TryKeepRun(void* p) {
    ThreadCache* const cache = thread_state.cache;
    const void* const descriptor = PageMap::HomeDescriptorOf(p);
    Run* const run = Arena::RunStartingAt(p, descriptor);
    if (ABSL_PREDICT_FALSE(run == nullptr || thread_state.tag == 0 ||
                           static_cast<const Segment*>(descriptor)->arena() !=
                               cache->arena())) {
      return false;
    }
    const size_t list = RunCache::NotedListOfRun(run);
    if (ABSL_PREDICT_FALSE(list >= RunCache::kLists) ||
        ABSL_PREDICT_FALSE(!cache->lock_.TryAcquireByBias())) {
      return false;
    }
    const bool is_kept = cache->runs_.TryPutIn(list, run, p, run->bytes());
    cache->lock_.ReleaseByBias();
    return is_kept;
  }

  // Frees a run in use: keeps it, or gives it to its arena.
  static void FreeRun(Run* run);

  // Gives the thread's magazines and depots back to its slabs, and empty slabs
  // and kept runs to the arena.
  static void FlushThread();

  // Gives the blocks of cold classes that are only noted to their slabs. The
  // owner thread only.
  void FlushNotes() ABSL_LOCKS_EXCLUDED(lock_);

  // --- Lifetime; see thread_life.h. ---

  // What a cache takes: it is constructed at the start of so many zero bytes.
  static constexpr size_t AllocationBytes() {
    return sizeof(ThreadCache) + kClasses * sizeof(Depot);
  }

  // Makes the cache ready for a thread, in memory that is zero or was a cache.
  void Open(Tag tag, Arena* arena) ABSL_LOCKS_EXCLUDED(lock_);

  // Gives everything up: blocks to their slabs, empty slabs to the arena, the
  // others to its orphans. The owner thread, or nobody, is running.
  void Close() ABSL_LOCKS_EXCLUDED(lock_);

  // Gives up what would be in others' way if the cache stayed open without a
  // thread: notes, remote frees and page runs. Returns how many bytes it has free
  // and resident then. The owner thread only.
  size_t Rest() ABSL_LOCKS_EXCLUDED(lock_);
  static constexpr size_t kMostRestingBytes = 1024 * 1024;

  // In the child of a fork, for the cache of a thread that is gone: makes it one that may
  // wait to be closed, and touches little of it, since what is written to is copied, and
  // most children end soon.
  void BereaveAfterFork() ABSL_LOCKS_EXCLUDED(lock_);

  // In the child of a fork: takes in all remote frees, whoever had the tokens, and writes
  // to no slab that has none. Returns whether the slabs are so many that the cache is to
  // inherit them.
  [[nodiscard]] bool DrainAllAfterFork() ABSL_LOCKS_EXCLUDED(lock_);

  // Then, for the cache of the child's only thread: all its slabs are inherited from now on,
  // which is to say that they have another tag than the cache, for which the caller gives
  // one that no cache had before. What is freed in them goes the way of remote frees, which
  // does not write to the block, and they are allocated from only after some new ones.
  void InheritSlabs(Tag new_tag) ABSL_LOCKS_EXCLUDED(lock_);

  // Whether the pages of a slab that this cache owns are still those of the parent, as far
  // as this process of a fork knows: to write to one copies it.
  bool IsInherited(const Slab* slab) const { return slab->owner_tag != tag_; }

  // For the maintenance thread, now and then: takes in remote frees, and gives
  // back what the owner has not used since the last call: magazines that stayed
  // in the depot, the free pages of slabs that have been as they are for some
  // calls, and, of a thread that does nothing, empty slabs, the free pages of all
  // others, and page runs. When it `is_urgent`, as if the owner had been idle for
  // long. Takes so many steps over the slabs at most. Sets *gave_back if it gave
  // anything back, and returns whether there may be more at the next call.
  bool Tidy(bool is_urgent, bool* gave_back,
            size_t most_steps = SlabPass::kMostSteps)
      ABSL_LOCKS_EXCLUDED(lock_);
  // Whether it would find nothing to do, nor have anything for the next call, if
  // nothing is urgent. Any thread, after a FenceAllThreads().
  bool IsTidy() const;

  // --- For any thread. ---

  PendingStack& pending() { return pending_; }
  // The owner's, but for frees().
  RemoteBatch& remote_batch() { return remote_batch_; }
  BiasedLock& lock() ABSL_LOCK_RETURNED(lock_) { return lock_; }
  Tag tag() const { return tag_; }
  // Relaxed: who holds no lock that keeps the cache open takes it for a hint.
  Arena* arena() const { return arena_.load(std::memory_order_relaxed); }

  Counters counters() ABSL_LOCKS_EXCLUDED(lock_);
  // Returns counters(). Takes in remote frees. What the owner changes without the lock is
  // read as it is if told that the cache is the caller's, or nobody's; else it is right for
  // an owner that rests, and otherwise nearly so. Where the system refuses to read it, it is
  // not counted.
  Counters AddStatistics(ClassStatistics (&classes)[kClasses],
                         bool owner_rests) ABSL_LOCKS_EXCLUDED(lock_);

  // Blocks in the magazine and its spare. The owner thread, or while it is not
  // running.
  size_t MagazineBlocks(SizeClass size_class) const {
    const Magazine& magazine = magazines_[size_class];
    return static_cast<size_t>(magazine.capacity - magazine.room) +
           (spares_[size_class] != nullptr ? FullMagazineBlocks(size_class) : 0);
  }

  // Aborts when an invariant does not hold. Checks magazines only if told that
  // the owner is the caller or is not running.
  void Verify(bool with_magazines) ABSL_LOCKS_EXCLUDED(lock_);

  // Links of the registry, guarded by its lock; the first never changes once the
  // cache is in the registry.
  ThreadCache* next_in_registry = nullptr;
  ThreadCache* next_closed = nullptr;  // Or the next parked.
  bool is_open = false;
  // Relaxed: who reads it without the lock takes it for a hint.
  bool is_parked() const { return is_parked_.load(std::memory_order_relaxed); }
  void SetParked(bool is_parked) {
    is_parked_.store(is_parked, std::memory_order_relaxed);
  }
  uint8_t parked_looks = 0;
  // In the child of a fork, in which its thread is gone. The registry's.
  bool is_bereft = false;

 private:
  // Blocks of cold classes that are noted before they go to their slabs.
  static constexpr uint32_t kMostNotes = 64;

  // The lists of a class's slabs: one for each Slab::Fullness, and behind those two for
  // inherited slabs with blocks in use.
  enum List : uint8_t {
    kInherited = Slab::kFullnesses,  // With free blocks, too.
    kInheritedFull,
    kLists,
  };

  // What stands behind the magazine of one class.
  struct Shelf {
    // Of slabs with blocks in use and free ones.
    std::array<SlabList*, 5> PartlyUsed() {
      return {&slabs[kInherited], &slabs[Slab::kThreeFourths], &slabs[Slab::kHalf],
              &slabs[Slab::kFourth], &slabs[Slab::kSparse]};
    }

    SlabList slabs[kLists];
    uint8_t depot_count = 0;
    // The fewest that there were since the last Tidy(): so many of the oldest
    // were not wanted.
    uint8_t depot_unused = 0;
    bool is_cold : 1 = false;
    // Since Tidy() found the whole cache unused: the magazine starts small.
    bool was_idle : 1 = false;
    // Since the cache was opened.
    bool had_slab : 1 = false;
    // So many new slabs come before inherited ones.
    uint32_t new_slabs_first = 0;
  };

  // Of each class depot_count full magazines of FullMagazineBlocks(), the oldest
  // first. They lie behind the cache and get no value before they are used: most
  // of this is never touched, and the cache itself has a quarter of its size.
  using Depot = FreeBlock* [kDepotMagazines];
  Depot& DepotOf(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    return reinterpret_cast<Depot*>(this + 1)[size_class];
  }

  // A magazine of slabs with `own_tag`.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool FindMagazineBy(
      const Tag& own_tag, const void* p, Magazine** magazine) {
    Tag tag;
    if (ABSL_PREDICT_FALSE(!PageMap::HomeTagOf(p, &tag))) return false;
    if (ABSL_PREDICT_FALSE(tag - own_tag >= kOwnerUnit)) return false;
    *magazine = MagazineOf(tag);
    return true;
  }

  // Of a magazine that holds one more than it may, lets it hold more, or takes its blocks.
  static void Overflow(Magazine* magazine);
  // The same for one that may hold as much as a spare, too: makes the older half
  // the spare.
  void Split(Magazine* magazine, SizeClass size_class)
      ABSL_LOCKS_EXCLUDED(lock_);
  // The same for one that may not become larger. All of it is the spare then; with the
  // second, which comes where there is a spare already, that moves to the depot first.
  void MoveToSpare(Magazine* magazine, SizeClass size_class);
  void OverflowSpare(Magazine* magazine, SizeClass size_class)
      ABSL_LOCKS_EXCLUDED(lock_);
  // Puts a full magazine's blocks into the depot, or, if that is full, into their slabs.
  // Returns whether one more would have room in it.
  bool PutIntoDepot(FreeBlock* blocks, SizeClass size_class)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Sees to it that what OverflowSpare() has put away goes back in time.
  void NoteOverflow(Magazine* magazine, SizeClass size_class, bool depot_is_full)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Moves the spare magazine, if there is one, to where the empty one is, and
  // takes a block of it. Requires that that is empty: its blocks would be lost.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void* TakeSpare(SizeClass size_class) {
    FreeBlock* const spare = spares_[size_class];
    if (spare == nullptr) return nullptr;
    Magazine& magazine = magazines_[size_class];
    QUARRY_DCHECK(magazine.head == nullptr);
    // In this order, and before the first is popped, for the child of a fork: see
    // RepairMoves().
    magazine.head = spare;
    std::atomic_signal_fence(std::memory_order_release);
    spares_[size_class] = nullptr;
    std::atomic_signal_fence(std::memory_order_release);
    // What this magazine and a spare may hold together: a need that rises and
    // falls about the edge between the two does not come here each time.
    magazine.capacity = 2 * MostMagazineBlocks(size_class);
    magazine.room =
        magazine.capacity - static_cast<int32_t>(FullMagazineBlocks(size_class));
    return magazine.Pop();
  }

  // Notes that `p` is free, unless it is what was noted last.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static bool TryNote(void* p, bool* notes_are_full) {
    ThreadCache* const cache = thread_state.cache;
    const uint32_t count = cache->notes_count_;
    if (ABSL_PREDICT_FALSE(cache->notes_[count] == p)) return false;
    // In this order, for the child of a fork at any moment: see thread_life.h.
    cache->notes_[count + 1] = p;
    std::atomic_signal_fence(std::memory_order_release);
    cache->notes_count_ = count + 1;
    *notes_are_full = count + 1 == kMostNotes;
    return true;
  }

  SizeClass ClassOfMagazine(const Magazine* magazine) const {
    return static_cast<SizeClass>(magazine - magazines_);
  }

  // For what RunCache allows without the lock.
  const RunCache& runs_unlocked() const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return runs_;
  }
  // Do not wait: the maintenance thread may be at work on all slabs.
  void* TakeRunUnbiased(size_t list) ABSL_LOCKS_EXCLUDED(lock_);
  // Gives back a run behind `run`, if it keeps that, and with what is free or kept there
  // `run` could have least_pages. Returns whether it did.
  bool TryGiveUpBehind(const Run* run, size_t least_pages)
      ABSL_LOCKS_EXCLUDED(lock_);
  void KeepRun(Run* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Relaxed: under the lock, but for IsTidy(), whose caller has had a fence.
  bool WasUsed() const { return was_used_.load(std::memory_order_relaxed); }
  bool IsUntidy() const { return is_untidy_.load(std::memory_order_relaxed); }
  void SetUsed(bool was_used) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    was_used_.store(was_used, std::memory_order_relaxed);
  }
  void SetUntidy(bool is_untidy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    is_untidy_.store(is_untidy, std::memory_order_relaxed);
  }

  // Of a thread that is to use its magazines.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void* AllocateOwn(SizeClass size_class)
      ABSL_LOCKS_EXCLUDED(lock_) {
    Magazine& magazine = magazines_[size_class];
    if (magazine.head != nullptr) return magazine.Pop();
    if (void* block = TakeSpare(size_class)) return block;
    OwnerLockHolder hold(lock_);
    return Refill(size_class);
  }

  // Looks at one magazine, the next in turn: of a block that was freed twice, with others in
  // between, its list becomes a ring, which is never empty and never flushed, and gives the
  // same blocks out until the program writes to the links in them. Then more blocks may have
  // come out of it than it can hold.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void LookForRing() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Requires that there is neither magazine nor spare.
  void* Refill(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // The slab to begin with, after a drain if one is due; nullptr if none has a free block.
  ABSL_ATTRIBUTE_ALWAYS_INLINE Slab* SlabForRefill(SizeClass size_class)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Fills the magazine, which is empty, from `slab` and others of the class.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void FillFrom(Slab* slab, Magazine* magazine,
                                             SizeClass size_class)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void* TakeOne(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Without the lock the slab may be lent at any moment. Relaxed: only the owner makes this
  // cache that of a slab, and who lends one has the lock.
  bool Owns(const Slab* slab) const {
    return slab->owner.load(std::memory_order_relaxed) == this;
  }
  // Of Free() and FreeOutgrown(). False, with nothing changed, if the slab has been lent.
  [[nodiscard]] bool TryFreeLocally(Slab* slab, void* p) ABSL_LOCKS_EXCLUDED(lock_);
  [[nodiscard]] bool TryFreeOutgrownLocally(Slab* slab, void* p)
      ABSL_LOCKS_EXCLUDED(lock_);
  // Requires that there is a magazine in it.
  void TakeFromDepot(SizeClass size_class)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void GrowMagazine(Magazine* magazine);
  // Between cold and warm: whether the fast path takes frees of the class.
  void TurnCold(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void TurnWarm(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Sends the next free of a warm class to TryFreeLocally(), once: whoever calls Overflow()
  // cannot start the maintenance thread, or do its work where there is none, and the
  // program may make no calls but such frees.
  void DivertNextFree(Magazine* magazine) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void FlushCold() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Puts the blocks noted from `note` on that are in one word of a slab's bitmap,
  // which the first is in as block `index`; returns where the others begin.
  void** PutNotedWord(void** note, Slab* slab, size_t index)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Aborts with a report on a note of what is no block in use.
  [[noreturn]] void ReportNote(void* p);
  // The same on an entry of a magazine's list that lies in no slab of the class.
  [[noreturn]] static void ReportOtherTag(const FreeBlock* block, SizeClass size_class,
                                          const FreeBlock* linked_from);
  void Flush(FreeBlock* first, SizeClass size_class)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // The magazine, the spare one and the depot of one class.
  void FlushClass(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // That of all classes, remote frees, and what the thread keeps of page runs.
  void FlushAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // The slab to allocate from next: the fullest that has a free block.
  Slab* BestSlab(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // TryKeepForeign() of a thread that may keep some.
  static bool KeepForeign(void* p, const RemoteBlock& block);
  // In the child of a fork: blocks of other threads are its parent's. Relaxed: set while
  // there is one thread.
  static std::atomic<bool> others_are_inherited_;
  // The thread has a slab more of new pages, and has freed blocks of other owners: some of
  // the next of these it may keep.
  void WantForeign(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // See thread_cache_lend.cc. A slab with free blocks of the class, or nullptr if no other
  // cache that seems idle has one; then the arena may have used pages of theirs.
  Slab* BorrowSlab(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Whether slabs are pending, and the owner has done nothing since others began to ask.
  bool SeemsIdle();
  // Gives empty slabs to the arena, and partly used ones to the orphans, if told so.
  void LendSlabs(bool partly_used) ABSL_LOCKS_EXCLUDED(lock_);
  void OrphanPartlyUsed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Marks a noted block free whose slab was lent meanwhile. Aborts with a report if it is
  // none.
  void PutLentNote(void* p);
  // Whether a slab from the arena would be of new pages, as a rule.
  bool WantsNewPages() const { return arena()->FreeDirtyBytes() < kSlabBytes; }
  // One more slab, from the orphans or the arena.
  Slab* AcquireSlab(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // How many of the class are full, up to `most`.
  uint32_t FullSlabs(SizeClass size_class, uint32_t most) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Whether a class will likely fill the next slab, too, or what is left of it is
  // little beside what the thread has.
  Filling FillingOfNext(SizeClass size_class) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void TakeOwnership(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // The first of these inherited slabs, as one's own.
  Slab* TakeInherited(SlabList* list) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Put a slab of which blocks were taken, or to which some were given back, into the
  // list where it belongs; one that is empty goes back to the arena if there is another.
  void RelistAfterTake(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    if (ABSL_PREDICT_FALSE(slab->FullnessHasRisen())) MoveToItsList(slab);
  }
  void RelistAfterPut(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    if (ABSL_PREDICT_FALSE(slab->FullnessHasFallen())) MoveToItsList(slab);
  }
  void MoveToItsList(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // In which list of its class it belongs.
  uint8_t ListOf(const Slab* slab) const {
    const Slab::Fullness fullness = slab->fullness();
    if (ABSL_PREDICT_TRUE(!IsInherited(slab)) || fullness == Slab::kEmpty) return fullness;
    return fullness == Slab::kFull ? kInheritedFull : kInherited;
  }
  // Whether so much more from the arena would be fresh pages, as a rule, while free blocks
  // keep slabs from being empty: of what was freed in no order, each slab has one in a
  // magazine.
  bool WantsBlocksBackFor(size_t bytes) const {
    return (any_was_cold_ || has_large_depots_) && arena()->FreeDirtyBytes() < bytes;
  }
  // Then: flushes the depots of large blocks, or if a class was cold, all classes, and
  // returns empty slabs.
  void GiveBlocksBack() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // The same by the owner, which does not hold the lock, unless it would have to wait.
  void GiveBlocksBackUnlocked() ABSL_LOCKS_EXCLUDED(lock_);
  // The oldest so many magazines of a class's depot.
  void FlushDepot(SizeClass size_class, uint8_t magazines)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Returns whether there were any.
  bool FlushUnusedDepots() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // A step of slab_pass_.
  SlabPass::State PassOverSlabs(uint8_t looks, bool* gave_back)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void ReturnEmptySlab(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Returns whether there were any.
  bool ReturnEmptySlabs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void DrainPending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // The same, and what came free is for Tidy() to look at.
  void DrainForTidy() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // In the child of a fork: one magazine that was just moving is in both places, whichever
  // way it went, and an entry of the batch half written.
  void RepairMoves() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Takes the first slab that is this cache's out of *pending, what a pending stack had;
  // nullptr if none is left. Those before it, which are other caches', it moves to *others,
  // for PassTokens().
  Slab* PopOwn(Slab** pending, Slab** others) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Slabs of a pending stack that are another cache's, linked by pending_next:
  // their tokens go on.
  static void PassTokens(Slab* slabs);
  // Makes orphans of the slabs with blocks in use, puts the others into a list, and closes
  // the pending stack. Returns what PassTokens() is to be called for.
  [[nodiscard]] Slab* CloseSlabs(SlabList* empty) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Free blocks out of reach, for AddStatistics().
  void AddOutOfReach(ClassStatistics (&classes)[kClasses], bool owner_rests) const;

  template <typename Visit>
  void ForEachSlab(Visit visit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    for (Shelf& shelf : shelves_) {
      for (SlabList& list : shelf.slabs) list.ForEach(visit);
    }
  }

  // In the order in which a thread that has just begun needs it: what it does not, it
  // does not touch, and a page here is a page for each thread. The magazines and what
  // follows them up to the shelves of small blocks are on the first, other shelves on
  // the second, and on the third most of what is for remote and cold frees, page runs
  // and the depots.

  BiasedLock lock_;
  Tag tag_ = 0;
  std::atomic<bool> is_parked_{false};
  // Whether the owner used what the lock guards since the last Tidy(), and whether
  // there was more to give back then.
  std::atomic<bool> was_used_{false};
  std::atomic<bool> is_untidy_{false};
  // Whether its magazines ever had a block of another's slab: else a link to one was written
  // by the program. Relaxed: set by the owner, before such a block is where others look.
  std::atomic<bool> had_foreign_{false};
  std::atomic<Arena*> arena_{nullptr};
  Counters counters_ ABSL_GUARDED_BY(lock_);
  size_t depot_bytes_ ABSL_GUARDED_BY(lock_) = 0;
  // In all slabs of the thread that are not inherited.
  size_t owned_slab_bytes_ ABSL_GUARDED_BY(lock_) = 0;
  // Where BorrowSlab() goes on; nullptr at the beginning.
  ThreadCache* next_lender_ ABSL_GUARDED_BY(lock_) = nullptr;
  // Since GiveBlocksBack(): whether a class turned cold, and whether a magazine and a spare
  // of large blocks overflowed. Written under the lock, and read by the owner without.
  bool any_was_cold_ = false;
  bool has_large_depots_ = false;
  // Classes of which the thread had a slab.
  uint16_t classes_with_slabs_ ABSL_GUARDED_BY(lock_) = 0;
  // Refills since the last drain, and how many there may be. The owner's, and read by others
  // for a hint.
  std::atomic<uint32_t> refills_undrained_{0};
  static constexpr uint32_t kMostUndrained = 16;
  // By FreeOutgrown().
  UntoldBytes untold_outgrown_ ABSL_GUARDED_BY(lock_);
  SlabPass slab_pass_ ABSL_GUARDED_BY(lock_);

  // How many of notes_ there are.
  uint32_t notes_count_ = 0;

  // The class that LookForRing() looks at next.
  uint8_t ring_class_ ABSL_GUARDED_BY(lock_) = 0;

  // Of each class a second magazine, of FullMagazineBlocks(), or nullptr. The owner's.
  // Where there is one, the capacity of the magazine is MostMagazineBlocks(); only where
  // there is none, it may be twice that.
  FreeBlock* spares_[kClasses] = {};

  // On a line of its own: other threads write it.
  alignas(64) PendingStack pending_;
  // Of SeemsIdle(): how often it was asked since the owner last took the stack or refilled.
  // Relaxed: hints.
  std::atomic<uint32_t> looks_{0};
  std::atomic<uint32_t> refills_at_look_{0};

  alignas(64) Shelf shelves_[kClasses] ABSL_GUARDED_BY(lock_);

  // The owner's.
  ForeignAllowance foreign_allowance_;
  RemoteBatch remote_batch_;

  // Blocks of cold classes that are not in their slabs' bitmaps yet. The
  // owner's, as the magazines are.
  //
  //   notes_   | nullptr | block | ... | block notes_count_ | nullptr in a flush |
  void* notes_[1 + kMostNotes + 1];  // Zero: see the constructors.

  RunCache runs_ ABSL_GUARDED_BY(lock_);
};

// What a thread without a cache has. Never written.
[[gnu::visibility("hidden")]] extern constinit ThreadCache no_cache;

}  // namespace quarry

#endif  // QUARRY_TCACHE_THREAD_CACHE_H_
