#ifndef QUARRY_ARENA_PAGE_SOURCE_H_
#define QUARRY_ARENA_PAGE_SOURCE_H_

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/base/optimization.h"
#include "arena/limits.h"

namespace quarry {

// The largest pages that serve: a granule of the page map must be whole pages.
constexpr size_t kLargestPageBytes = size_t{64} << 10;

namespace internal {
extern std::atomic<size_t> page_bytes;  // 0 until it is known.
size_t FindPageBytes();
// `bytes`, which the kernel names as the size of its pages.
size_t CheckPageBytes(size_t bytes);
}  // namespace internal

// Bytes of one page of this machine: 4, 16 or 64 KiB. A power of two. Aborts
// with ReportUnsupportedPages() where pages are larger than kLargestPageBytes.
inline size_t PageBytes() {
  // Whoever finds it stores the same number.
  const size_t bytes = internal::page_bytes.load(std::memory_order_relaxed);
  return ABSL_PREDICT_TRUE(bytes != 0) ? bytes : internal::FindPageBytes();
}

// The same for who holds memory from a source, and so comes after that was asked
// for: without a call that a fast path would have to be ready for.
inline size_t KnownPageBytes() {
  return internal::page_bytes.load(std::memory_order_relaxed);
}

// The smallest multiple of `unit`, a power of two, that is >= bytes. Wraps to
// a small number when there is none.
constexpr size_t RoundUp(size_t bytes, size_t unit) {
  return (bytes + unit - 1) & ~(unit - 1);
}

// Whether `p` is a multiple of `unit`, a power of two.
inline bool IsMultiple(const void* p, size_t unit) {
  return (reinterpret_cast<uintptr_t>(p) & (unit - 1)) == 0;
}

// How many pages `bytes` bytes need.
inline size_t PagesFor(size_t bytes) {
  // PageBytes() is a power of two, which the compiler cannot know.
  return RoundUp(bytes, PageBytes()) >> std::countr_zero(PageBytes());
}

// What a huge page covers, and a table of small ones. Where the system's are of another
// size, those that are asked for do not come.
inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// Where an arena's memory comes from: mappings of whole pages.
//
// The public functions check the contract and keep the counts; a source
// overrides the private ones. The base class is a source that has nothing to
// give, so one that cannot purge or move leaves those out.
//
// All addresses and sizes are multiples of PageBytes(). A range may be part of
// a mapping.
//
// Thread-safety: any thread; the private functions must be as safe.
// Errors: a refusal is nullptr or false, changes nothing, and is passed up. So
//   is a mapping that would pass the hard limit. errno is preserved.
// Cost: one system call or a few.
class PageSource {
 public:
  struct Statistics {
    size_t mapped_bytes;       // Mapped now.
    size_t peak_mapped_bytes;  // The most it ever was.
    size_t map_calls;          // Of any kind, GrowInPlace and both moves, that
                               // succeeded.
    size_t unmap_calls;
    size_t purge_calls;
    size_t purged_bytes;  // By those calls, ever.
  };

  PageSource(const PageSource&) = delete;
  PageSource& operator=(const PageSource&) = delete;

  // `bytes` bytes that read as zero, at a multiple of `alignment`, a power of
  // two. Nothing is resident until it is touched.
  [[nodiscard]] void* Map(size_t bytes, size_t alignment);

  // Ends a mapping. A part of one may be unmapped, too, but is then counted as
  // if it had been one; ShrinkInPlace() counts right.
  void Unmap(void* start, size_t bytes);

  enum class Purged {
    kRefused,  // The pages are as they were.
    kZero,     // They read as zero and are not resident.
    kLazy,     // They keep their content until the system takes them, one by
               // one and at any time, or until they are written to.
  };

  // Gives the memory back to the OS but keeps the addresses. kLazy only when
  // settings.lazy_purge is on.
  [[nodiscard]] Purged Purge(void* start, size_t bytes);

  // The same and never lazily: false is kRefused and true is kZero.
  [[nodiscard]] bool PurgeToZero(void* start, size_t bytes);

  // Makes the range read as zero. What is resident stays so, and nothing else becomes it, where
  // the system tells what is and takes the rest.
  void MakeZero(void* start, size_t bytes);

  // Extends the mapping [start, start + old_bytes) to new_bytes without moving
  // it; the new part reads as zero.
  [[nodiscard]] bool GrowInPlace(void* start, size_t old_bytes,
                                 size_t new_bytes);

  // Unmaps the end of the mapping [start, start + old_bytes).
  void ShrinkInPlace(void* start, size_t old_bytes, size_t new_bytes);

  // A mapping of new_bytes for Move() to move old_bytes to. Only what it adds
  // is counted, so that a limit need not have room for both. What grew once will
  // grow again: so many addresses as it is long are left free behind it if there
  // are as many, for GrowInPlace().
  [[nodiscard]] void* MapPlace(size_t old_bytes, size_t new_bytes,
                               size_t alignment);
  void UnmapPlace(size_t old_bytes, void* place, size_t new_bytes);

  // Moves the pages of [start, start + old_bytes) to `place`, which is from
  // MapPlace() and has not been touched. No byte is copied. On success the old
  // range is unmapped and the rest of `place` reads as zero. On false the old
  // range is as it was, and `place` is gone.
  [[nodiscard]] bool Move(void* start, size_t old_bytes, void* place,
                          size_t new_bytes);

  // Moves the pages of [start, start + old_bytes), which is part of a mapping, to
  // `place`, which is from MapPlace() for 0 bytes and has not been touched. No byte
  // is copied. On success the old range stays mapped, and it and the rest of `place`
  // read as zero. On false the old range is as it was, and `place` is gone: also
  // where the mapping is locked in memory, which the kernel would undo.
  [[nodiscard]] bool MoveOut(void* start, size_t old_bytes, void* place,
                             size_t new_bytes);

  // Makes any access to the range a fault. A refusal is not told: a guard is
  // a second line of defence.
  void Guard(void* start, size_t bytes);

  // Asks that touching one page makes one page resident and not a huge one. A
  // refusal is not told: it costs memory, not correctness.
  void KeepSmallPages(void* start, size_t bytes);

  // Asks for huge pages where a page is touched from now on. A refusal is not
  // told.
  void PreferHugePages(void* start, size_t bytes);

  // Makes all pages of the range resident that are not, as writes to each would, in one
  // go: for who is about to write to all of it. A refusal is not told.
  void Populate(void* start, size_t bytes);

  // Whether the page that starts at `page` is in memory; false where that is not known.
  [[nodiscard]] bool IsResident(void* page);

  // Whether seven eighths of the range are; false where that is not known.
  [[nodiscard]] bool IsMostlyResident(void* start, size_t bytes);

  // Ends PreferHugePages() for a range of which a page was touched: once a huge
  // page is there it needs no advice, but where there is advice the system may
  // make one later of what a purge has left. False if the range was not made
  // resident, because the system had no huge page.
  [[nodiscard]] bool FinishHugePage(void* start, size_t bytes);

  Statistics statistics() const;

 protected:
  static constexpr size_t kMostPagesLookedAt = 256;

  constexpr PageSource() = default;
  // What is mapped is charged to `limits`.
  constexpr explicit PageSource(MemoryLimits& limits) : limits_(&limits) {}
  ~PageSource() = default;

 private:
  virtual void* MapPages(size_t bytes, size_t alignment);
  // The same with as many addresses behind it that are free, if possible.
  virtual void* MapPagesToGrow(size_t bytes, size_t alignment);
  virtual void UnmapPages(void* start, size_t bytes);
  virtual bool PurgePages(void* start, size_t bytes);
  virtual bool PurgePagesLazily(void* start, size_t bytes);
  // How many of the bytes are resident; SIZE_MAX where that is not known.
  virtual size_t ResidentBytes(void* start, size_t bytes);
  // Which of so many pages are resident: the lowest bit of a byte for each. At most
  // kMostPagesLookedAt. False where that is not known.
  virtual bool FindResident(void* start, size_t pages, unsigned char* resident);
  virtual bool GrowPages(void* start, size_t old_bytes, size_t new_bytes);
  virtual bool MovePages(void* start, size_t old_bytes, void* place,
                         size_t new_bytes);
  virtual bool MovePagesOut(void* start, size_t old_bytes, void* place,
                            size_t new_bytes);
  virtual void GuardPages(void* start, size_t bytes);
  virtual void AdviseSmallPages(void* start, size_t bytes);
  virtual void AdviseHugePages(void* start, size_t bytes);
  virtual void PopulatePages(void* start, size_t bytes);

  // What map() returns, counted as `bytes` more that are mapped.
  template <typename Mapper>
  void* MapCounted(size_t bytes, Mapper map);
  [[nodiscard]] bool Charge(size_t bytes);
  void Refund(size_t bytes);
  void CountMapped(size_t bytes);
  void CountUnmapped(size_t bytes);
  void CountPurged(size_t bytes);

  MemoryLimits* const limits_ = nullptr;

  // Plain counters: nothing is published through them.
  std::atomic<size_t> mapped_bytes_{0};
  std::atomic<size_t> peak_mapped_bytes_{0};
  std::atomic<size_t> map_calls_{0};
  std::atomic<size_t> unmap_calls_{0};
  std::atomic<size_t> purge_calls_{0};
  std::atomic<size_t> purged_bytes_{0};
};

// Anonymous private memory from the operating system, not reserved in swap.
// The only code that knows mmap, munmap, mremap, madvise, mprotect and mincore.
class OsPageSource final : public PageSource {
 public:
  constexpr OsPageSource() = default;
  constexpr explicit OsPageSource(MemoryLimits& limits) : PageSource(limits) {}

  // From now on `other` is asked in place of the operating system, which is
  // asked again after Substitute(nullptr): how a test refuses memory to the
  // whole heap. `other` is given ranges back that it never mapped.
  //
  // Thread-safety: any thread; calls that are under way end as they began.
  void Substitute(PageSource* other) {
    // Release pairs with the acquire in substitute(): who sees `other` sees it
    // constructed.
    substitute_.store(other, std::memory_order_release);
  }

 private:
  PageSource* substitute() const {
    return substitute_.load(std::memory_order_acquire);
  }

  void* MapPages(size_t bytes, size_t alignment) override;
  void* MapPagesToGrow(size_t bytes, size_t alignment) override;
  void UnmapPages(void* start, size_t bytes) override;
  bool PurgePages(void* start, size_t bytes) override;
  bool PurgePagesLazily(void* start, size_t bytes) override;
  size_t ResidentBytes(void* start, size_t bytes) override;
  bool FindResident(void* start, size_t pages, unsigned char* resident) override;
  bool GrowPages(void* start, size_t old_bytes, size_t new_bytes) override;
  bool MovePages(void* start, size_t old_bytes, void* place,
                 size_t new_bytes) override;
  bool MovePagesOut(void* start, size_t old_bytes, void* place,
                    size_t new_bytes) override;
  void GuardPages(void* start, size_t bytes) override;
  void AdviseSmallPages(void* start, size_t bytes) override;
  void AdviseHugePages(void* start, size_t bytes) override;
  void PopulatePages(void* start, size_t bytes) override;

  // Whether a Move() is not to be tried, since a place was lost not long ago.
  bool SkipsMove();
  // After one that failed: whether its place was lost.
  void NoteFailedMove(void* place);

  std::atomic<PageSource*> substitute_{nullptr};
  // Relaxed: who does not see it asks once more.
  std::atomic<bool> can_populate_{true};
  // So many moves are not tried after one whose place was lost. Relaxed: two threads that
  // count at once may try one move more or less.
  static constexpr uint32_t kSkippedMoves = 32;
  std::atomic<uint32_t> moves_to_skip_{0};
};

extern OsPageSource os_page_source;

// The process's source, within memory_limits. A constant expression, for static instances.
constexpr PageSource& OsPages() { return os_page_source; }

}  // namespace quarry

#endif  // QUARRY_ARENA_PAGE_SOURCE_H_
