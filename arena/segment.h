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

// The record of one mapping that an arena tiles with runs.
//
// The boundary tags of all runs and the state of all pages follow the record in
// one piece of metadata, so an overflow of a user's block reaches neither:
//
//   metadata: [ Segment | tag: 8 bytes per page | dirty: 1 bit per page ]
//   pages:    [ run | run |      run      |  ...                  | top ]
//
// tag(i) is the run whose first or last page is i, and nullptr for the pages
// between. dirty(i) says that page i may be resident and hold other bytes than
// zero: it is clear in a fresh mapping, set when a run is freed, cleared when
// the page is purged. Because each page has its own bit, a split or a join of
// runs loses nothing: a dirty run that joins an untouched one stays apart from
// it, for calloc and for the purge. The bits of pages in use are as they were
// when the run was allocated.
//
// Thread-safety: under the lock of the arena, but for TagAt(), see there.
// Invariant: the runs found by tags tile [0, pages()) without a gap.
// Size: 64 bytes, and 65 bits per page.
// Source: boundary tags (Knuth 1968), out of band as in a page map.
class alignas(64) Segment {
 public:
  // The record of the mapping [start, start + pages * PageBytes()), without
  // runs, all pages clean. nullptr when the pool refuses.
  [[nodiscard]] static Segment* Make(MetadataPool& metadata, Arena* arena,
                                     char* start, uint32_t pages);
  static void Discard(MetadataPool& metadata, Segment* segment);

  char* start() const { return start_; }
  uint32_t pages() const { return pages_; }
  size_t bytes() const { return pages_ * PageBytes(); }
  Arena* arena() const { return arena_; }

  // The page that p lies in. Requires that p lies in the segment.
  uint32_t PageOf(const void* p) const;

  // The run whose first or last page is `page`, or nullptr if there is none.
  //
  // May be called without the lock for the first page of a run in use: that tag
  // is written before the run is handed out and not again before it is freed.
  Run* TagAt(uint32_t page) const {
    return tags_[page].load(std::memory_order_relaxed);
  }

  // Writes or clears the tags of the run's first and last page.
  void SetTags(Run* run);
  void ClearTags(const Run* run);

  // Changes the run's length and moves the tag of its last page; that of its
  // first page is not touched.
  void MoveEnd(Run* run, uint32_t pages);

  // The runs before and after, or nullptr at the ends of the segment.
  Run* Before(const Run* run) const;
  Run* After(const Run* run) const;

  // How many of the pages [first, first + pages) are dirty.
  uint32_t CountDirty(uint32_t first, uint32_t pages) const;
  void SetDirty(uint32_t first, uint32_t pages);
  void SetClean(uint32_t first, uint32_t pages);

  // Aborts unless the runs tile the segment.
  void Verify() const;

  // The arena's list of segments, newest first.
  Segment* next = nullptr;
  Segment* previous = nullptr;

 private:
  Segment(Arena* arena, char* start, uint32_t pages)
      : start_(start), arena_(arena), pages_(pages) {}

  static size_t RecordBytes(uint32_t pages);

  char* const start_;
  Arena* const arena_;
  std::atomic<Run*>* tags_ = nullptr;  // pages() of them.
  uint64_t* dirty_ = nullptr;          // Bit i % 64 of word i / 64.
  const uint32_t pages_;
};

static_assert(sizeof(Segment) == 64, "a segment's record is one cache line");

inline Arena* Run::arena() const { return segment->arena(); }

}  // namespace quarry

#endif  // QUARRY_ARENA_SEGMENT_H_
