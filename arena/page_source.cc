#include "arena/page_source.h"

#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "absl/base/attributes.h"
#include "arena/errno_saver.h"
#include "arena/report.h"
#include "arena/settings.h"

namespace quarry {
namespace internal {

constinit std::atomic<size_t> page_bytes{0};

size_t FindPageBytes() {
  const size_t bytes = CheckPageBytes(getauxval(AT_PAGESZ));
  page_bytes.store(bytes, std::memory_order_relaxed);
  return bytes;
}

size_t CheckPageBytes(size_t bytes) {
  if (!std::has_single_bit(bytes) || bytes > kLargestPageBytes) {
    ReportUnsupportedPages(bytes, kLargestPageBytes);
  }
  return bytes;
}

}  // namespace internal

namespace {

constexpr int kProtection = PROT_READ | PROT_WRITE;
constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

#ifdef MREMAP_DONTUNMAP
constexpr int kKeepOldMapping = MREMAP_DONTUNMAP;
#else
constexpr int kKeepOldMapping = 4;  // Of Linux 5.7, which libc may not know.
#endif

#ifdef MADV_COLD
constexpr int kUnlessLocked = MADV_COLD;
#else
constexpr int kUnlessLocked = 20;  // Of Linux 5.4, which libc may not know.
#endif

#ifdef MADV_POPULATE_WRITE
constexpr int kPopulate = MADV_POPULATE_WRITE;
#else
constexpr int kPopulate = 23;  // Of Linux 5.14, which libc may not know.
#endif

bool IsWholePages(const void* start, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  return bytes > 0 && ((address | bytes) & (PageBytes() - 1)) == 0;
}

char* MapAnywhere(size_t bytes) {
  void* const start = mmap(nullptr, bytes, kProtection, kFlags, -1, 0);
  return start == MAP_FAILED ? nullptr : static_cast<char*>(start);
}

bool IsMapped(void* page) {
  unsigned char is_resident;
  return mincore(page, PageBytes(), &is_resident) == 0;
}

// False where it would cut a hole into what the kernel sees as one mapping and the process
// has no mapping to spare, or a filter refuses the call.
ABSL_ATTRIBUTE_NOINLINE bool TryUnmapRange(char* start, size_t bytes) {
  return bytes == 0 || munmap(start, bytes) == 0;
}

void UnmapRange(char* start, size_t bytes) {
  // If refused, the addresses are lost, the memory is not.
  if (!TryUnmapRange(start, bytes)) {
    static_cast<void>(madvise(start, bytes, MADV_DONTNEED));
  }
}

// Whether the kernel would move the range: it does not if that is more than one mapping,
// nor where a filter refuses it. Asked to move it, it says so before or after it has
// unmapped the place; so it is asked to extend the range, for which it may have no room.
bool IsOneMapping(void* start, size_t bytes) {
  if (mremap(start, bytes, bytes + PageBytes(), 0) == MAP_FAILED) return errno == ENOMEM;
  UnmapRange(static_cast<char*>(start) + bytes, PageBytes());
  return true;
}

// With room_bytes of free addresses behind it.
char* MapAligned(size_t bytes, size_t alignment, size_t room_bytes) {
  const size_t slack = alignment - PageBytes() + room_bytes;
  if (bytes + slack < bytes) return nullptr;
  char* const start = MapAnywhere(bytes + slack);
  if (start == nullptr) return nullptr;
  const size_t before = -reinterpret_cast<uintptr_t>(start) & (alignment - 1);
  // What is behind is a hole where the kernel has joined it with the mapping above. If it
  // is that large, not all of it is to be lost: the caller can do without room.
  char* const behind = start + before + bytes;
  if (room_bytes == 0) {
    UnmapRange(behind, slack - before);
  } else if (!TryUnmapRange(behind, slack - before) &&
             TryUnmapRange(start, bytes + slack)) {
    return nullptr;
  }
  UnmapRange(start, before);
  return start + before;
}

}  // namespace

void* PageSource::Map(size_t bytes, size_t alignment) {
  QUARRY_DCHECK(bytes > 0 && bytes % PageBytes() == 0);
  QUARRY_DCHECK(std::has_single_bit(alignment));
  return MapCounted(bytes, [&] {
    void* const start = MapPages(bytes, alignment);
    QUARRY_DCHECK(IsMultiple(start, alignment));
    return start;
  });
}

void* PageSource::MapPlace(size_t old_bytes, size_t new_bytes,
                           size_t alignment) {
  QUARRY_DCHECK(old_bytes < new_bytes && new_bytes % PageBytes() == 0);
  return MapCounted(new_bytes - old_bytes, [&] {
    void* const place = MapPagesToGrow(new_bytes, alignment);
    QUARRY_DCHECK(IsMultiple(place, alignment));
    return place;
  });
}

template <typename Mapper>
void* PageSource::MapCounted(size_t bytes, Mapper map) {
  if (!Charge(bytes)) return nullptr;
  void* const start = map();
  if (start == nullptr) {
    Refund(bytes);
    return nullptr;
  }
  map_calls_.fetch_add(1, std::memory_order_relaxed);
  CountMapped(bytes);
  return start;
}

void PageSource::Unmap(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  UnmapPlace(0, start, bytes);
}

void PageSource::UnmapPlace(size_t old_bytes, void* place, size_t new_bytes) {
  UnmapPages(place, new_bytes);
  unmap_calls_.fetch_add(1, std::memory_order_relaxed);
  CountUnmapped(new_bytes - old_bytes);
}

void PageSource::ShrinkInPlace(void* start, size_t old_bytes,
                               size_t new_bytes) {
  QUARRY_DCHECK(IsWholePages(start, old_bytes));
  QUARRY_DCHECK(IsWholePages(start, new_bytes) && new_bytes < old_bytes);
  UnmapPages(static_cast<char*>(start) + new_bytes, old_bytes - new_bytes);
  unmap_calls_.fetch_add(1, std::memory_order_relaxed);
  CountUnmapped(old_bytes - new_bytes);
}

void PageSource::CountPurged(size_t bytes) {
  purge_calls_.fetch_add(1, std::memory_order_relaxed);
  purged_bytes_.fetch_add(bytes, std::memory_order_relaxed);
}

PageSource::Purged PageSource::Purge(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  if (settings.lazy_purge.load(std::memory_order_relaxed) &&
      PurgePagesLazily(start, bytes)) {
    CountPurged(bytes);
    return Purged::kLazy;
  }
  return PurgeToZero(start, bytes) ? Purged::kZero : Purged::kRefused;
}

bool PageSource::PurgeToZero(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  if (!PurgePages(start, bytes)) return false;
  CountPurged(bytes);
  return true;
}

// Per MiB, in us: to write to resident pages 11, to pages that are not resident 450, to give
// resident pages back 50, to look which are resident 0.5. What is resident is of a program
// that uses some pages of each of its blocks, and will use these again: given back, each of
// them would be a fault. The others are given back as well, for they may have been swapped
// out; that returns nothing, so it is not counted.
void PageSource::MakeZero(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  const size_t page_bytes = PageBytes();
  for (char* piece = static_cast<char*>(start); bytes > 0;) {
    const size_t pages = std::min(bytes / page_bytes, kMostPagesLookedAt);
    unsigned char resident[kMostPagesLookedAt];
    const bool is_known = FindResident(piece, pages, resident);
    for (size_t page = 0; page < pages;) {
      const size_t first = page;
      const bool is_resident = !is_known || (resident[first] & 1) != 0;
      do {
        ++page;
      } while (page < pages && (!is_known || ((resident[page] & 1) != 0) == is_resident));
      char* const from = piece + first * page_bytes;
      const size_t range_bytes = (page - first) * page_bytes;
      if (is_resident || !PurgePages(from, range_bytes)) memset(from, 0, range_bytes);
    }
    piece += pages * page_bytes;
    bytes -= pages * page_bytes;
  }
}

bool PageSource::GrowInPlace(void* start, size_t old_bytes, size_t new_bytes) {
  QUARRY_DCHECK(IsWholePages(start, old_bytes));
  QUARRY_DCHECK(IsWholePages(start, new_bytes) && old_bytes < new_bytes);
  if (!Charge(new_bytes - old_bytes)) return false;
  if (!GrowPages(start, old_bytes, new_bytes)) {
    Refund(new_bytes - old_bytes);
    return false;
  }
  map_calls_.fetch_add(1, std::memory_order_relaxed);
  CountMapped(new_bytes - old_bytes);
  return true;
}

bool PageSource::Move(void* start, size_t old_bytes, void* place,
                      size_t new_bytes) {
  QUARRY_DCHECK(IsWholePages(start, old_bytes));
  QUARRY_DCHECK(IsWholePages(place, new_bytes) && old_bytes <= new_bytes);
  if (!MovePages(start, old_bytes, place, new_bytes)) {
    CountUnmapped(new_bytes - old_bytes);
    return false;
  }
  map_calls_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool PageSource::MoveOut(void* start, size_t old_bytes, void* place,
                         size_t new_bytes) {
  QUARRY_DCHECK(IsWholePages(start, old_bytes));
  QUARRY_DCHECK(IsWholePages(place, new_bytes) && old_bytes <= new_bytes);
  if (!MovePagesOut(start, old_bytes, place, new_bytes)) {
    CountUnmapped(new_bytes);
    return false;
  }
  map_calls_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void PageSource::Guard(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  GuardPages(start, bytes);
}

void PageSource::KeepSmallPages(void* start, size_t bytes) {
  AdviseSmallPages(start, bytes);
}

void PageSource::PreferHugePages(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  AdviseHugePages(start, bytes);
}

void PageSource::Populate(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  PopulatePages(start, bytes);
}

bool PageSource::IsResident(void* page) {
  QUARRY_DCHECK(IsWholePages(page, PageBytes()));
  return ResidentBytes(page, PageBytes()) == PageBytes();
}

bool PageSource::IsMostlyResident(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  const size_t resident = ResidentBytes(start, bytes);
  return resident != SIZE_MAX && resident >= bytes - bytes / 8;
}

bool PageSource::FinishHugePage(void* start, size_t bytes) {
  QUARRY_DCHECK(IsWholePages(start, bytes));
  char* const last_page = static_cast<char*>(start) + bytes - PageBytes();
  const bool is_huge = ResidentBytes(last_page, PageBytes()) != 0;
  AdviseSmallPages(start, bytes);
  return is_huge;
}

PageSource::Statistics PageSource::statistics() const {
  return {mapped_bytes_.load(std::memory_order_relaxed),
          peak_mapped_bytes_.load(std::memory_order_relaxed),
          map_calls_.load(std::memory_order_relaxed),
          unmap_calls_.load(std::memory_order_relaxed),
          purge_calls_.load(std::memory_order_relaxed),
          purged_bytes_.load(std::memory_order_relaxed)};
}

bool PageSource::Charge(size_t bytes) {
  return limits_ == nullptr || limits_->Charge(bytes);
}

void PageSource::Refund(size_t bytes) {
  if (limits_ != nullptr) limits_->Refund(bytes);
}

void PageSource::CountMapped(size_t bytes) {
  const size_t now =
      mapped_bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  size_t peak = peak_mapped_bytes_.load(std::memory_order_relaxed);
  while (now > peak && !peak_mapped_bytes_.compare_exchange_weak(
                           peak, now, std::memory_order_relaxed)) {
  }
}

void PageSource::CountUnmapped(size_t bytes) {
  mapped_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
  Refund(bytes);
}

void* PageSource::MapPages(size_t, size_t) { return nullptr; }
void* PageSource::MapPagesToGrow(size_t bytes, size_t alignment) {
  return MapPages(bytes, alignment);
}
void PageSource::UnmapPages(void*, size_t) {}
bool PageSource::PurgePages(void*, size_t) { return false; }
bool PageSource::PurgePagesLazily(void*, size_t) { return false; }
size_t PageSource::ResidentBytes(void*, size_t) { return SIZE_MAX; }
bool PageSource::FindResident(void*, size_t, unsigned char*) { return false; }
bool PageSource::GrowPages(void*, size_t, size_t) { return false; }
bool PageSource::MovePages(void*, size_t, void* place, size_t new_bytes) {
  UnmapPages(place, new_bytes);
  return false;
}
bool PageSource::MovePagesOut(void*, size_t, void* place, size_t new_bytes) {
  UnmapPages(place, new_bytes);
  return false;
}
void PageSource::GuardPages(void*, size_t) {}
void PageSource::AdviseSmallPages(void*, size_t) {}
void PageSource::AdviseHugePages(void*, size_t) {}
void PageSource::PopulatePages(void*, size_t) {}

constinit OsPageSource os_page_source(memory_limits);

void* OsPageSource::MapPages(size_t bytes, size_t alignment) {
  if (PageSource* const other = substitute()) {
    return other->Map(bytes, alignment);
  }
  ErrnoSaver saver;
  char* start = MapAnywhere(bytes);
  if (start == nullptr || IsMultiple(start, alignment)) return start;
  // The kernel places mappings one below the other, so after one detour they
  // tend to be aligned by themselves. This is the detour: map too much, and
  // trim both ends.
  UnmapRange(start, bytes);
  return MapAligned(bytes, alignment, 0);
}

void* OsPageSource::MapPagesToGrow(size_t bytes, size_t alignment) {
  if (PageSource* const other = substitute()) {
    return other->MapPlace(0, bytes, alignment);
  }
  ErrnoSaver saver;
  // Where there is a limit on addresses, there may be room for the one but not
  // for the other.
  char* const place = MapAligned(bytes, alignment, bytes);
  return place != nullptr ? place : MapPages(bytes, alignment);
}

void OsPageSource::UnmapPages(void* start, size_t bytes) {
  if (PageSource* const other = substitute()) return other->Unmap(start, bytes);
  ErrnoSaver saver;
  UnmapRange(static_cast<char*>(start), bytes);
}

bool OsPageSource::PurgePages(void* start, size_t bytes) {
  if (PageSource* const other = substitute()) {
    return other->PurgeToZero(start, bytes);
  }
  ErrnoSaver saver;
  return madvise(start, bytes, MADV_DONTNEED) == 0;
}

bool OsPageSource::PurgePagesLazily(void* start, size_t bytes) {
  if (substitute() != nullptr) return false;
  ErrnoSaver saver;
  return madvise(start, bytes, MADV_FREE) == 0;
}

size_t OsPageSource::ResidentBytes(void* start, size_t bytes) {
  unsigned char pages[kMostPagesLookedAt];
  const size_t most_bytes = kMostPagesLookedAt * PageBytes();
  size_t resident = 0;
  for (size_t done = 0; done < bytes; done += most_bytes) {
    const size_t count = std::min(bytes - done, most_bytes) / PageBytes();
    if (!FindResident(static_cast<char*>(start) + done, count, pages)) return SIZE_MAX;
    for (size_t i = 0; i < count; ++i) resident += pages[i] & 1;
  }
  return resident * PageBytes();
}

bool OsPageSource::FindResident(void* start, size_t pages, unsigned char* resident) {
  if (substitute() != nullptr) return false;
  ErrnoSaver saver;
  return mincore(start, pages * PageBytes(), resident) == 0;
}

bool OsPageSource::GrowPages(void* start, size_t old_bytes, size_t new_bytes) {
  if (PageSource* const other = substitute()) {
    return other->GrowInPlace(start, old_bytes, new_bytes);
  }
  ErrnoSaver saver;
  return mremap(start, old_bytes, new_bytes, 0) != MAP_FAILED;
}

bool OsPageSource::SkipsMove() {
  const uint32_t left = moves_to_skip_.load(std::memory_order_relaxed);
  if (left != 0) moves_to_skip_.store(left - 1, std::memory_order_relaxed);
  return left != 0;
}

void OsPageSource::NoteFailedMove(void* place) {
  // It may be another thread's mapping by now and must be left alone: the kernel unmaps
  // it before it can still fail, but not where the process has hardly a mapping to spare,
  // or, in new kernels, an address. Then it is lost, and not soon another.
  if (IsMapped(place)) moves_to_skip_.store(kSkippedMoves, std::memory_order_relaxed);
}

bool OsPageSource::MovePages(void* start, size_t old_bytes, void* place,
                             size_t new_bytes) {
  if (PageSource* const other = substitute()) {
    return other->Move(start, old_bytes, place, new_bytes);
  }
  ErrnoSaver saver;
  if (SkipsMove() || !IsOneMapping(start, old_bytes)) {
    UnmapRange(static_cast<char*>(place), new_bytes);
    return false;
  }
  if (mremap(start, old_bytes, new_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place) !=
      MAP_FAILED) {
    return true;
  }
  NoteFailedMove(place);
  return false;
}

bool OsPageSource::MovePagesOut(void* start, size_t old_bytes, void* place,
                                size_t new_bytes) {
  if (PageSource* const other = substitute()) {
    return other->MoveOut(start, old_bytes, place, new_bytes);
  }
  ErrnoSaver saver;
  // The kernel takes the lock off the whole mapping that pages move out of. It
  // has no call that tells whether there is one, but refuses this for what is
  // locked; for the rest it is a hint about pages that are moved at once. A huge page
  // would be split by one about a part of it.
  const bool may_be_huge =
      IsMultiple(start, kHugePageBytes) && old_bytes >= kHugePageBytes;
  if (madvise(start, may_be_huge ? kHugePageBytes : PageBytes(), kUnlessLocked) != 0) {
    UnmapRange(static_cast<char*>(place), new_bytes);
    return false;
  }
  // By way of a mapping of their own. The kernel does not join pages that were
  // touched elsewhere with the rest of `place`, and a mapping that is two to it
  // could not be moved or extended again. It had best lie in the room behind
  // `place`; libc's mremap() does not pass that hint on.
  char* const hint = static_cast<char*>(place) + new_bytes;
  const long address = syscall(SYS_mremap, start, old_bytes, old_bytes,
                               MREMAP_MAYMOVE | kKeepOldMapping, hint);
  if (address == -1) {
    UnmapRange(static_cast<char*>(place), new_bytes);
    return false;
  }
  auto* const between = reinterpret_cast<char*>(address);
  if (mremap(between, old_bytes, new_bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
             place) != MAP_FAILED) {
    return true;
  }
  NoteFailedMove(place);
  memcpy(start, between, old_bytes);
  UnmapRange(between, old_bytes);
  return false;
}

void OsPageSource::GuardPages(void* start, size_t bytes) {
  if (PageSource* const other = substitute()) return other->Guard(start, bytes);
  ErrnoSaver saver;
  static_cast<void>(mprotect(start, bytes, PROT_NONE));
}

void OsPageSource::AdviseSmallPages(void* start, size_t bytes) {
  if (PageSource* const other = substitute()) {
    return other->KeepSmallPages(start, bytes);
  }
  ErrnoSaver saver;
  // madvise wants whole pages; a page that is only partly in the range may
  // well be small, too.
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  const uintptr_t first = address & ~(PageBytes() - 1);
  const size_t length = RoundUp(address + bytes - first, PageBytes());
  static_cast<void>(
      madvise(reinterpret_cast<void*>(first), length, MADV_NOHUGEPAGE));
}

void OsPageSource::AdviseHugePages(void* start, size_t bytes) {
  if (PageSource* const other = substitute()) {
    return other->PreferHugePages(start, bytes);
  }
  ErrnoSaver saver;
  static_cast<void>(madvise(start, bytes, MADV_HUGEPAGE));
}

void OsPageSource::PopulatePages(void* start, size_t bytes) {
  if (PageSource* const other = substitute()) {
    return other->Populate(start, bytes);
  }
  if (!can_populate_.load(std::memory_order_relaxed)) return;
  ErrnoSaver saver;
  // EINVAL: a kernel before 5.14, or what stands for one.
  if (madvise(start, bytes, kPopulate) != 0 && errno == EINVAL) {
    can_populate_.store(false, std::memory_order_relaxed);
  }
}

}  // namespace quarry
