#ifndef QUARRY_ARENA_SEGMENT_H_
#define QUARRY_ARENA_SEGMENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "arena/metadata.h"
#include "arena/page_source.h"
#include "arena/run.h"

namespace quarry {

class Arena;

// The record of neighbouring mappings that an arena tiles with runs.
//
// The boundary tags of all runs and the state of all pages lie about the record in
// one piece of metadata, so an overflow of a user's block reaches neither. The
// table reaches farther than the first mapping, since the kernel places the
// next one beside it, as a rule below: that one extends the segment, and a run
// may lie across the border. Nothing of the table moves, so it is read without
// a lock. Pages are numbered from the start of the reach:
//
//   pages:    [    reach    | first mapping: run | run | run  |   reach    ]
//             0             middle_, where first_page() is at first
//   metadata: [ tags of     | state: 2 bits | Segment | tags of all pages  ]
//             [ pages below |   per page    |         | from middle_ on    ]
//
// So a small heap's tags, its states and the record are on one page of metadata,
// and the tag where the first mapping ends is on another.
//
// tag(i) is the run whose first or last page is i, and nullptr for the pages
// between and outside. A page has two bits:
//
//   dirty     it may be resident: a purge may give it back.
//   unknown   it may hold other bytes than zero.
//
//                  dirty  unknown
//   fresh, purged    0       0
//   made resident    1       0     By a huge page of which another was touched.
//   freed            1       1
//   purged lazily    0       1     The system takes it when it needs it.
//
// Because each page has its own bits, a split or a join of runs loses nothing:
// a dirty run that joins an untouched one stays apart from it, for calloc and
// for the purge. The bits of pages in use are as they were when the run was
// allocated.
//
// Thread-safety: under the lock of the arena, but for TagAt(), see there.
// Invariant: the runs found by tags tile [first_page(), end_page()) without a
//   gap; outside are neither tags nor bits.
// Size: 64 bytes, and 66 bits per page within reach; what is not touched
//   is not resident.
// Source: boundary tags (Knuth 1968), out of band as in a page map.
class alignas(64) Segment {
 public:
  // The table reaches over four times the first mapping, but not over more
  // than this unless that mapping is larger: the tags of 256 MiB are 512 KiB.
  static constexpr size_t kReachFactor = 4;
  static constexpr size_t kMostReachBytes = size_t{256} << 20;

  // The record of the mapping [start, start + pages * PageBytes()), without
  // runs, all pages clean. nullptr when the pool refuses.
  [[nodiscard]] static Segment* Make(MetadataPool& metadata, Arena* arena,
                                     char* start, uint32_t pages);
  static void Discard(MetadataPool& metadata, Segment* segment);
  // What that takes of the pool.
  static size_t RecordBytes(uint32_t pages) {
    return RecordBytesOfReach(ReachFor(pages));
  }

  // Extends the segment by a mapping that touches it, all pages clean and
  // without runs. False if it does not, or is out of reach.
  [[nodiscard]] bool TryExtend(const char* start, uint32_t pages);

  // Gives up the first or the last pages, which have no tags.
  void Trim(uint32_t first, uint32_t pages);

  char* start() const { return AddressOf(first_page_); }
  uint32_t first_page() const { return first_page_; }
  uint32_t end_page() const { return end_page_; }
  uint32_t pages() const { return end_page_ - first_page_; }
  size_t bytes() const { return pages() * PageBytes(); }
  Arena* arena() const { return arena_; }

  // The page that p lies in. Requires that p is within reach.
  uint32_t PageOf(const void* p) const {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - reach_start_;
    // PageBytes() is a power of two, which the compiler cannot know; that it is
    // not 0 the built-in function takes for granted, unlike std::countr_zero().
    return static_cast<uint32_t>(offset >> __builtin_ctzll(KnownPageBytes()));
  }
  char* AddressOf(uint32_t page) const {
    return reinterpret_cast<char*>(reach_start_ + page * PageBytes());
  }

  // The run whose first or last page is `page`, or nullptr if there is none.
  //
  // May be called without the lock for the first page of a run in use: that tag
  // is written before the run is handed out and not again before it is freed.
  Run* TagAt(uint32_t page) const {
    // Relaxed: the lock orders all readers but that one.
    return TagOf(page).load(std::memory_order_relaxed);
  }

  // Writes or clears the tags of the run's first and last page.
  void SetTags(Run* run);
  void ClearTags(const Run* run);

  // Changes the run's length and moves the tag of its last page; that of its
  // first page is not touched. What was noted of the length in Run::bin is forgotten.
  void MoveEnd(Run* run, uint32_t pages);

  // The runs before and after, or nullptr at the ends of the segment.
  Run* Before(const Run* run) const {
    const uint32_t first = PageOf(run->start);
    return first == first_page_ ? nullptr : TagAt(first - 1);
  }
  Run* After(const Run* run) const {
    const uint32_t next_page = PageOf(run->start) + run->pages;
    return next_page == end_page_ ? nullptr : TagAt(next_page);
  }

  bool IsDirty(uint32_t page) const {
    return (states_[page / kWordBits].dirty >> page % kWordBits & 1) != 0;
  }

  // How many of the pages [first, first + pages) are dirty.
  uint32_t CountDirty(uint32_t first, uint32_t pages) const;

  // The first dirty page from `first` on, or the last of [first, first + pages). Requires
  // that there is one.
  uint32_t FirstDirty(uint32_t first) const;
  uint32_t LastDirty(uint32_t first, uint32_t pages) const;

  // Whether all of the pages [first, first + pages) are known to be zero.
  bool AreZero(uint32_t first, uint32_t pages) const;

  // The pages were in use: they are dirty and unknown.
  void SetDirty(uint32_t first, uint32_t pages);

  // The pages, of which none was touched, are resident now, and zero.
  void SetResident(uint32_t first, uint32_t pages);

  // The pages were purged and are clean; `zero` tells that they read as zero.
  void SetPurged(uint32_t first, uint32_t pages, bool zero);

  // Aborts unless the runs tile the segment.
  void Verify() const;

  // The arena's list of segments, newest first.
  Segment* next = nullptr;
  Segment* previous = nullptr;

 private:
  static constexpr uint32_t kWordBits = 64;

  // The states of 64 pages, bit i % 64 for page i.
  struct States {
    uint64_t dirty;
    uint64_t unknown;
  };

  Segment(Arena* arena, uintptr_t reach_start, uint32_t reach_pages,
          uint32_t first_page, uint32_t pages)
      : reach_start_(reach_start),
        arena_(arena),
        reach_pages_(reach_pages),
        middle_(first_page),
        first_page_(first_page),
        end_page_(first_page + pages) {}

  static size_t StateBytes(uint32_t reach_pages);
  // Of all.
  static size_t RecordBytesOfReach(uint32_t reach_pages);
  // How many pages the table is for, if the first mapping has so many.
  static uint32_t ReachFor(uint32_t pages);

  template <typename Visitor>
  static void ForEachWord(uint32_t first, uint32_t pages, Visitor visit);

  // Those of the pages from the middle on follow the record, and those below it end
  // where the states begin.
  std::atomic<Run*>& TagOf(uint32_t page) const {
    const int32_t from_middle = static_cast<int32_t>(page - middle_);
    const void* const middle = from_middle >= 0
                                   ? static_cast<const void*>(this + 1)
                                   : static_cast<const void*>(states_);
    return static_cast<std::atomic<Run*>*>(const_cast<void*>(middle))[from_middle];
  }
  void SetTag(uint32_t page, Run* run) {
    TagOf(page).store(run, std::memory_order_relaxed);
  }

  const uintptr_t reach_start_;
  Arena* const arena_;
  States* states_ = nullptr;  // reach_pages_ / kWordBits of them.
  const uint32_t reach_pages_;
  const uint32_t middle_;
  uint32_t first_page_;
  uint32_t end_page_;
};

static_assert(sizeof(Segment) == 64, "a segment's record is one cache line");

inline Arena* Run::arena() const { return segment->arena(); }

}  // namespace quarry

#endif  // QUARRY_ARENA_SEGMENT_H_
