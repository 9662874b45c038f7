#ifndef QUARRY_ARENA_PAGE_SOURCE_H_
#define QUARRY_ARENA_PAGE_SOURCE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/optimization.h"

namespace quarry {

namespace internal {
extern std::atomic<size_t> page_bytes;  // 0 until it is known.
size_t FindPageBytes();
}  // namespace internal

// Bytes of one page of this machine: 4, 16 or 64 KiB. A power of two.
inline size_t PageBytes() {
  // Whoever finds it stores the same number.
  const size_t bytes = internal::page_bytes.load(std::memory_order_relaxed);
  return ABSL_PREDICT_TRUE(bytes != 0) ? bytes : internal::FindPageBytes();
}

// The smallest multiple of `unit`, a power of two, that is >= bytes. Wraps to
// a small number when there is none.
constexpr size_t RoundUp(size_t bytes, size_t unit) {
  return (bytes + unit - 1) & ~(unit - 1);
}

// Where an arena's memory comes from: mappings of whole pages.
//
// The public functions check the contract and keep the counts; a source
// overrides the private ones. The base class is a source that has nothing to
// give, so one that cannot purge or move leaves those out.
//
// All addresses and sizes are multiples of PageBytes(). A range may be part of
// a mapping: Unmap() and Purge() split it.
//
// Thread-safety: any thread; the private functions must be as safe.
// Errors: a refusal is nullptr or false, changes nothing, and is passed up.
//   errno is preserved.
// Cost: one system call or a few.
class PageSource {
 public:
  struct Statistics {
    size_t mapped_bytes;       // Mapped now.
    size_t peak_mapped_bytes;  // The most it ever was.
    size_t map_calls;          // Map, GrowInPlace and Move that succeeded.
    size_t unmap_calls;
    size_t purge_calls;
  };

  PageSource(const PageSource&) = delete;
  PageSource& operator=(const PageSource&) = delete;

  // `bytes` bytes that read as zero, at a multiple of `alignment`, a power of
  // two. Nothing is resident until it is touched.
  [[nodiscard]] void* Map(size_t bytes, size_t alignment);

  void Unmap(void* start, size_t bytes);

  // Gives the memory back to the OS but keeps the addresses: the pages read as
  // zero and are not resident. On false they are as they were.
  [[nodiscard]] bool Purge(void* start, size_t bytes);

  // Extends the mapping [start, start + old_bytes) to new_bytes without moving
  // it; the new part reads as zero.
  [[nodiscard]] bool GrowInPlace(void* start, size_t old_bytes,
                                 size_t new_bytes);

  // Moves the pages of [start, start + old_bytes) to `place`, a mapping of
  // new_bytes >= old_bytes from Map() that has not been touched. No byte is
  // copied. On success the old range is unmapped and the rest of `place` reads
  // as zero. On false the old range is as it was, and `place` is gone.
  [[nodiscard]] bool Move(void* start, size_t old_bytes, void* place,
                          size_t new_bytes);

  // Makes any access to the range a fault. A refusal is not told: a guard is
  // a second line of defence.
  void Guard(void* start, size_t bytes);

  // Asks that touching one page makes one page resident and not a huge one. A
  // refusal is not told: it costs memory, not correctness.
  void KeepSmallPages(void* start, size_t bytes);

  // Asks for huge pages in place of the small ones that are resident. A refusal
  // is not told: it costs time, not correctness.
  void PreferHugePages(void* start, size_t bytes);

  Statistics statistics() const;

 protected:
  constexpr PageSource() = default;
  ~PageSource() = default;

 private:
  virtual void* MapPages(size_t bytes, size_t alignment);
  virtual void UnmapPages(void* start, size_t bytes);
  virtual bool PurgePages(void* start, size_t bytes);
  virtual bool GrowPages(void* start, size_t old_bytes, size_t new_bytes);
  virtual bool MovePages(void* start, size_t old_bytes, void* place,
                         size_t new_bytes);
  virtual void GuardPages(void* start, size_t bytes);
  virtual void AdviseSmallPages(void* start, size_t bytes);
  virtual void AdviseHugePages(void* start, size_t bytes);

  void CountMapped(size_t bytes);
  void CountUnmapped(size_t bytes);

  // Plain counters: nothing is published through them.
  std::atomic<size_t> mapped_bytes_{0};
  std::atomic<size_t> peak_mapped_bytes_{0};
  std::atomic<size_t> map_calls_{0};
  std::atomic<size_t> unmap_calls_{0};
  std::atomic<size_t> purge_calls_{0};
};

// Anonymous private memory from the operating system, not reserved in swap.
// The only code that knows mmap, munmap, mremap, madvise and mprotect.
class OsPageSource final : public PageSource {
 public:
  constexpr OsPageSource() = default;

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
  void UnmapPages(void* start, size_t bytes) override;
  bool PurgePages(void* start, size_t bytes) override;
  bool GrowPages(void* start, size_t old_bytes, size_t new_bytes) override;
  bool MovePages(void* start, size_t old_bytes, void* place,
                 size_t new_bytes) override;
  void GuardPages(void* start, size_t bytes) override;
  void AdviseSmallPages(void* start, size_t bytes) override;
  void AdviseHugePages(void* start, size_t bytes) override;

  std::atomic<PageSource*> substitute_{nullptr};
};

extern OsPageSource os_page_source;

// The process's source. A constant expression, for static instances.
constexpr PageSource& OsPages() { return os_page_source; }

}  // namespace quarry

#endif  // QUARRY_ARENA_PAGE_SOURCE_H_
