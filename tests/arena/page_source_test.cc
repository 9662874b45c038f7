#include "arena/page_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "arena/limits.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/arena/in_child.h"
#include "tests/arena/refuse_call.h"
#include "tests/arena/resident_pages.h"
#include "tests/arena/sanitizers.h"
#include "tests/arena/scripted_page_source.h"
#include "tests/arena/test_seed.h"

namespace quarry {
namespace {

using Kind = ScriptedPageSource::Kind;
using Purged = PageSource::Purged;

constexpr size_t kMiB = size_t{1} << 20;

char* MapBytes(PageSource& source, size_t bytes, size_t alignment = 1) {
  return static_cast<char*>(source.Map(bytes, alignment));
}

char* MapPlace(PageSource& source, size_t old_bytes, size_t new_bytes) {
  return static_cast<char*>(source.MapPlace(old_bytes, new_bytes, kMiB));
}

bool IsMapped(char* page) {
  unsigned char resident;
  return mincore(page, PageBytes(), &resident) == 0;
}

// What the kernel says is mapped by this process.
size_t AddressSpaceBytes() {
  char text[64] = {};
  const int file = open("/proc/self/statm", O_RDONLY);
  EXPECT_GT(read(file, text, sizeof(text) - 1), 0);
  close(file);
  return strtoull(text, nullptr, 10) * PageBytes();
}

TEST(PageSource, KnowsThePageSize) {
  EXPECT_EQ(PageBytes(), static_cast<size_t>(sysconf(_SC_PAGESIZE)));
}

TEST(PageSource, RoundsUp) {
  EXPECT_EQ(RoundUp(0, 4096), 0u);
  EXPECT_EQ(RoundUp(1, 4096), 4096u);
  EXPECT_EQ(RoundUp(4096, 4096), 4096u);
  EXPECT_EQ(RoundUp(4097, 4096), 8192u);
}

TEST(OsPageSource, MapsZeroesThatAreNotResident) {
  OsPageSource source;
  char* const start = MapBytes(source, kMiB);
  ASSERT_NE(start, nullptr);
  EXPECT_EQ(ResidentPages(start, kMiB), 0u);
  for (size_t i = 0; i < kMiB; i += 512) ASSERT_EQ(start[i], 0);
  memset(start, 1, kMiB);
  source.Unmap(start, kMiB);
  EXPECT_FALSE(IsMapped(start));
}

TEST(OsPageSource, AlignsUpToAGiBAndMapsNoMore) {
  OsPageSource source;
  for (size_t alignment = PageBytes(); alignment <= size_t{1} << 30;
       alignment *= 2) {
    const size_t before = AddressSpaceBytes();
    char* const start = MapBytes(source, 2 * PageBytes(), alignment);
    ASSERT_NE(start, nullptr);
    EXPECT_EQ(AddressSpaceBytes(), before + 2 * PageBytes());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(start) % alignment, 0u);
    start[0] = start[2 * PageBytes() - 1] = 1;
    EXPECT_EQ(source.statistics().mapped_bytes, 2 * PageBytes());
    source.Unmap(start, 2 * PageBytes());
    EXPECT_EQ(source.statistics().mapped_bytes, 0u);
  }
}

TEST(OsPageSource, RefusesWhatDoesNotExistAndKeepsErrno) {
  OsPageSource source;
  errno = 1234;
  EXPECT_EQ(source.Map(size_t{1} << 60, 1), nullptr);
  EXPECT_EQ(source.Map(PageBytes(), size_t{1} << 63), nullptr);
  EXPECT_EQ(source.Map(~size_t{0} & ~(PageBytes() - 1), kMiB), nullptr);
  EXPECT_EQ(errno, 1234);
  EXPECT_EQ(source.statistics().mapped_bytes, 0u);
  EXPECT_EQ(source.statistics().map_calls, 0u);
}

TEST(OsPageSource, UnmapsAPart) {
  OsPageSource source;
  char* const start = MapBytes(source, 3 * PageBytes());
  ASSERT_NE(start, nullptr);
  source.Unmap(start + PageBytes(), PageBytes());
  start[0] = 1;
  start[2 * PageBytes()] = 1;
  EXPECT_FALSE(IsMapped(start + PageBytes()));
  source.Unmap(start, PageBytes());
  source.Unmap(start + 2 * PageBytes(), PageBytes());
}

TEST(OsPageSource, PurgedPagesAreZeroAndNotResident) {
  OsPageSource source;
  char* const start = MapBytes(source, kMiB);
  memset(start, 1, kMiB);
  ASSERT_EQ(source.Purge(start + PageBytes(), PageBytes()), Purged::kZero);
  EXPECT_EQ(start[0], 1);
  EXPECT_EQ(ResidentPages(start + PageBytes(), PageBytes()), 0u);
  for (size_t i = 0; i < PageBytes(); ++i) {
    ASSERT_EQ(start[PageBytes() + i], 0);
  }
  EXPECT_EQ(start[2 * PageBytes()], 1);
  source.Unmap(start, kMiB);
}

class LazyPurge : public testing::Test {
 protected:
  LazyPurge() { settings.lazy_purge = true; }
  ~LazyPurge() override { settings.lazy_purge = false; }
};

TEST_F(LazyPurge, IsToldAsSuchAndKeepsWhatIsWrittenAfterIt) {
  OsPageSource source;
  char* const start = MapBytes(source, kMiB);
  memset(start, 1, kMiB);
  ASSERT_EQ(source.Purge(start, kMiB), Purged::kLazy);
  EXPECT_EQ(source.statistics().purge_calls, 1u);
  EXPECT_EQ(source.statistics().purged_bytes, kMiB);
  memset(start, 2, PageBytes());
  EXPECT_EQ(start[PageBytes() - 1], 2);
  // Either, page by page.
  EXPECT_TRUE(start[kMiB - 1] == 1 || start[kMiB - 1] == 0);
  ASSERT_TRUE(source.PurgeToZero(start, kMiB));
  EXPECT_EQ(start[0], 0);
  source.Unmap(start, kMiB);
}

TEST_F(LazyPurge, ASourceThatKnowsOnlyTheOtherKindIsAskedForThat) {
  ScriptedPageSource source;
  char* const start = MapBytes(source, kMiB);
  start[0] = 1;
  EXPECT_EQ(source.Purge(start, kMiB), Purged::kZero);
  EXPECT_EQ(start[0], 0);
  source.Unmap(start, kMiB);
}

// Nothing becomes resident, and what is stays so: who uses a page of a block in so many will
// use it again.
TEST(OsPageSource, MakesZeroWhatIsResidentAndNothingElse) {
  OsPageSource source;
  const size_t bytes = 4 * kMiB;
  const size_t pages = bytes / PageBytes();
  char* const start = MapBytes(source, bytes);
  source.KeepSmallPages(start, bytes);
  std::mt19937_64 random(TestSeed());
  // Whole pieces that are looked at at once, none, the ends of others, and single pages.
  std::vector<bool> is_touched(pages);
  for (size_t i = 0; i < pages; ++i) {
    const size_t quarter = i * 4 / pages;
    is_touched[i] = quarter == 0 || (quarter == 2 && random() % 3 == 0) || i == pages - 1;
    if (is_touched[i]) memset(start + i * PageBytes(), 1, PageBytes());
  }
  source.MakeZero(start, bytes);
  for (size_t i = 0; i < pages; ++i) {
    ASSERT_EQ(ResidentPages(start + i * PageBytes(), PageBytes()) == 1, is_touched[i]) << i;
  }
  for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(start[i], 0);
  EXPECT_EQ(source.statistics().purge_calls, 0u) << "nothing went back";
  source.Unmap(start, bytes);
}

TEST(OsPageSource, ShrinksInPlaceAndRemainsOneMapping) {
  OsPageSource source;
  char* const start = MapBytes(source, kMiB);
  source.ShrinkInPlace(start, kMiB, PageBytes());
  EXPECT_FALSE(IsMapped(start + PageBytes()));
  EXPECT_TRUE(IsMapped(start));
  EXPECT_EQ(source.statistics().mapped_bytes, PageBytes());
  source.Unmap(start, PageBytes());
}

TEST(OsPageSource, APlaceThatIsNotUsedCountsNothing) {
  OsPageSource source;
  char* const start = MapBytes(source, kMiB);
  char* const place = MapPlace(source, kMiB, 3 * kMiB);
  source.UnmapPlace(kMiB, place, 3 * kMiB);
  EXPECT_FALSE(IsMapped(place));
  EXPECT_EQ(source.statistics().mapped_bytes, kMiB);
  EXPECT_EQ(source.statistics().peak_mapped_bytes, 3 * kMiB);
  source.Unmap(start, kMiB);
}

class LimitedPageSource : public testing::Test {
 protected:
  ~LimitedPageSource() override {
    EXPECT_EQ(limits_.mapped_bytes(), 0u);
    settings.hard_limit_bytes = 0;
  }

  MemoryLimits limits_{"/nonexistent"};
  OsPageSource source_{limits_};
};

TEST_F(LimitedPageSource, TheHardLimitRefusesWhatWouldPassIt) {
  limits_.SetLimits(0, 4 * kMiB);
  char* const start = MapBytes(source_, 3 * kMiB);
  ASSERT_NE(start, nullptr);
  EXPECT_EQ(MapBytes(source_, 2 * kMiB), nullptr);
  source_.ShrinkInPlace(start, 3 * kMiB, 2 * kMiB);
  EXPECT_TRUE(source_.GrowInPlace(start, 2 * kMiB, 3 * kMiB));
  source_.ShrinkInPlace(start, 3 * kMiB, 2 * kMiB);
  EXPECT_FALSE(source_.GrowInPlace(start, 2 * kMiB, 5 * kMiB));
  char* const other = MapBytes(source_, 2 * kMiB);
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(source_.statistics().mapped_bytes, 4 * kMiB);
  source_.Unmap(start, 2 * kMiB);
  source_.Unmap(other, 2 * kMiB);
}

TEST_F(LimitedPageSource, AMoveNeedsRoomOnlyForWhatItAdds) {
  limits_.SetLimits(0, 4 * kMiB);
  char* const start = MapBytes(source_, 3 * kMiB);
  EXPECT_EQ(MapPlace(source_, 3 * kMiB, 5 * kMiB), nullptr);
  char* const place = MapPlace(source_, 3 * kMiB, 4 * kMiB);
  ASSERT_NE(place, nullptr);
  ASSERT_TRUE(source_.Move(start, 3 * kMiB, place, 4 * kMiB));
  EXPECT_EQ(limits_.mapped_bytes(), 4 * kMiB);
  source_.Unmap(place, 4 * kMiB);
}

TEST_F(LimitedPageSource, WhatTheSystemRefusesIsNotCharged) {
  EXPECT_EQ(MapBytes(source_, size_t{1} << 60), nullptr);
  EXPECT_EQ(limits_.mapped_bytes(), 0u);
}

// The flags that the kernel shows for the mapping that p lies in.
std::string FlagsAt(const void* p) {
  std::ifstream maps("/proc/self/smaps");
  bool found = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t start, end;
    if (sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(p);
      found = start <= address && address < end;
    } else if (found && line.starts_with("VmFlags:")) {
      return line + " ";
    }
  }
  return "";
}

TEST(OsPageSource, MakesAHugePageAndLeavesNoAdvice) {
  OsPageSource source;
  char* const start = MapBytes(source, 8 * kMiB, 2 * kMiB);
  source.KeepSmallPages(start, 8 * kMiB);
  start[0] = 1;
  char* const page = start + 4 * kMiB;
  const bool has_flags = FlagsAt(start).find(" nh ") != std::string::npos;
  errno = 1234;
  source.PreferHugePages(page, 2 * kMiB);
  EXPECT_EQ(FlagsAt(page).find(" hg ") != std::string::npos, has_flags);
  page[0] = 0;
  const bool is_huge = source.FinishHugePage(page, 2 * kMiB);
  EXPECT_EQ(errno, 1234);
  // The system may have none.
  EXPECT_EQ(ResidentPages(page, 2 * kMiB),
            is_huge ? 2 * kMiB / PageBytes() : 1u);
  for (size_t i = 0; i < 2 * kMiB; ++i) ASSERT_EQ(page[i], 0);
  EXPECT_EQ(ResidentPages(start, 4 * kMiB), 1u);
  EXPECT_EQ(ResidentPages(start + 6 * kMiB, 2 * kMiB), 0u);
  EXPECT_EQ(FlagsAt(page), FlagsAt(start));
  source.Unmap(start, 8 * kMiB);
}

TEST(OsPageSource, KnowsWhichPagesAreResident) {
  OsPageSource source;
  char* const start = MapBytes(source, 3 * PageBytes());
  source.KeepSmallPages(start, 3 * PageBytes());
  start[PageBytes()] = 1;
  errno = 1234;
  EXPECT_FALSE(source.IsResident(start));
  EXPECT_TRUE(source.IsResident(start + PageBytes()));
  EXPECT_FALSE(source.IsResident(start + 2 * PageBytes()));
  source.Unmap(start, 3 * PageBytes());
  EXPECT_FALSE(source.IsResident(start + PageBytes())) << "for it is not mapped";
  EXPECT_EQ(errno, 1234);
}

TEST(OsPageSource, KnowsWhetherSevenEighthsAreResident) {
  OsPageSource source;
  const size_t bytes = kHugePageBytes;
  char* const start = MapBytes(source, bytes);
  source.KeepSmallPages(start, bytes);
  memset(start, 1, bytes / 8 * 7 - PageBytes());
  errno = 1234;
  EXPECT_FALSE(source.IsMostlyResident(start, bytes));
  start[bytes - 1] = 1;
  EXPECT_TRUE(source.IsMostlyResident(start, bytes));
  source.Unmap(start, bytes);
  EXPECT_FALSE(source.IsMostlyResident(start, bytes)) << "for it is not mapped";
  EXPECT_EQ(errno, 1234);
}

// As a filter of system calls may.
TEST(OsPageSource, GivesPagesBackAlsoWhereUnmappingIsRefused) {
  if (kUnderAsan || kUnderTsan) GTEST_SKIP() << "the sanitizer does more as it unmaps";
  enum { kDone, kNoFilter, kResident, kErrno };
  const int status = InChild([] {
    OsPageSource source;
    char* const start = MapBytes(source, kMiB);
    memset(start, 1, kMiB);
    if (!RefuseCall(SYS_munmap)) _exit(kNoFilter);
    errno = 7;
    source.Unmap(start, kMiB);
    if (errno != 7) _exit(kErrno);
    _exit(ResidentPages(start, kMiB) == 0 ? kDone : kResident);
  });
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoFilter) GTEST_SKIP() << "no seccomp()";
  EXPECT_EQ(WEXITSTATUS(status), kDone);
}

// A hole in a mapping makes two of it, and the kernel has a limit on those.
TEST(OsPageSource, UnmapsAlsoWhereTheKernelHasTooManyMappings) {
  if (kUnderAsan) GTEST_SKIP() << "the sanitizer needs mappings of its own";
  OsPageSource source;
  char* const hole = MapBytes(source, 3 * PageBytes());
  memset(hole, 1, 3 * PageBytes());
  const size_t bytes = 200000 * PageBytes();
  char* const many = MapBytes(source, bytes);
  for (size_t i = 0; i < bytes; i += 2 * PageBytes()) {
    if (mprotect(many + i, PageBytes(), PROT_READ) != 0) break;
  }
  errno = 1234;
  source.Unmap(hole + PageBytes(), PageBytes());
  EXPECT_EQ(errno, 1234);
  EXPECT_EQ(hole[0], 1);
  EXPECT_EQ(hole[2 * PageBytes()], 1);
  EXPECT_TRUE(!IsMapped(hole + PageBytes()) ||
              ResidentPages(hole + PageBytes(), PageBytes()) == 0);
  // One mapping again, for a sanitizer makes one for what is unmapped.
  EXPECT_EQ(mprotect(many, bytes, PROT_READ | PROT_WRITE), 0);
  source.Unmap(many, bytes);
  source.Unmap(hole, 3 * PageBytes());
}

TEST(OsPageSource, GrowsInPlaceIfTheAddressesAreFree) {
  OsPageSource source;
  char* const start = MapBytes(source, 2 * kMiB);
  source.Unmap(start + kMiB, kMiB);
  start[0] = 1;
  ASSERT_TRUE(source.GrowInPlace(start, kMiB, 2 * kMiB));
  EXPECT_EQ(start[0], 1);
  EXPECT_EQ(start[2 * kMiB - 1], 0);
  EXPECT_EQ(source.statistics().mapped_bytes, 2 * kMiB);
  // Its own second half is in the way of the first.
  EXPECT_FALSE(source.GrowInPlace(start, kMiB, 2 * kMiB));
  EXPECT_EQ(source.statistics().mapped_bytes, 2 * kMiB);
  source.Unmap(start, 2 * kMiB);
}

TEST(OsPageSource, MovesPagesWithoutTouchingOthers) {
  OsPageSource source;
  char* const old = MapBytes(source, kMiB);
  old[0] = 1;
  old[kMiB - 1] = 2;
  char* const place = MapPlace(source, kMiB, 4 * kMiB);
  EXPECT_EQ(source.statistics().mapped_bytes, 4 * kMiB);
  ASSERT_TRUE(source.Move(old, kMiB, place, 4 * kMiB));
  EXPECT_EQ(place[0], 1);
  EXPECT_EQ(place[kMiB - 1], 2);
  EXPECT_LE(ResidentPages(place, 4 * kMiB), 2u * 16);
  EXPECT_EQ(place[4 * kMiB - 1], 0);
  EXPECT_FALSE(IsMapped(old));
  EXPECT_EQ(source.statistics().mapped_bytes, 4 * kMiB);
  source.Unmap(place, 4 * kMiB);
}

TEST(OsPageSource, AFailedMoveLeavesTheOldRange) {
  for (const bool out : {false, true}) {
    OsPageSource source;
    char* const old = MapBytes(source, 2 * kMiB);
    old[0] = 1;
    // Two mappings for the kernel, which moves only one at a time.
    ASSERT_EQ(mprotect(old + kMiB, kMiB, PROT_READ), 0);
    char* const place = MapPlace(source, out ? 0 : 2 * kMiB, 4 * kMiB);
    EXPECT_FALSE(out ? source.MoveOut(old, 2 * kMiB, place, 4 * kMiB)
                     : source.Move(old, 2 * kMiB, place, 4 * kMiB));
    EXPECT_EQ(old[0], 1);
    // After a failed Move() it may be there, but is nobody's.
    EXPECT_FALSE(out && IsMapped(place));
    EXPECT_EQ(source.statistics().mapped_bytes, 2 * kMiB);
    source.Unmap(old, 2 * kMiB);
  }
}

// As a program's advice about a part of a block makes it.
TEST(OsPageSource, DoesNotMoveWhatIsSeveralMappings) {
  OsPageSource source;
  char* const old = MapBytes(source, 2 * kMiB);
  memset(old, 7, 2 * kMiB);
  ASSERT_EQ(madvise(old + kMiB, PageBytes(), MADV_DONTFORK), 0);
  const size_t mapped_bytes = source.statistics().mapped_bytes;
  const size_t addresses_bytes = AddressSpaceBytes();
  for (int i = 0; i < 10; ++i) {
    char* const place = MapPlace(source, 2 * kMiB, 64 * kMiB);
    errno = 1234;
    EXPECT_FALSE(source.Move(old, 2 * kMiB, place, 64 * kMiB));
    EXPECT_EQ(errno, 1234);
  }
  EXPECT_EQ(source.statistics().mapped_bytes, mapped_bytes);
  // As before, but for what a sanitizer takes.
  EXPECT_LT(AddressSpaceBytes(), addresses_bytes + 64 * kMiB);
  for (size_t i = 0; i < 2 * kMiB; ++i) ASSERT_EQ(old[i], 7);
  ASSERT_EQ(madvise(old + kMiB, PageBytes(), MADV_DOFORK), 0);
  source.Unmap(old, 2 * kMiB);
}

TEST(OsPageSource, LosesNoAddressesWhereMovingIsRefused) {
  if (kUnderAsan || kUnderTsan) GTEST_SKIP() << "the sanitizer does more as it unmaps";
  enum { kDone, kNoFilter, kMoved, kLost };
  const int status = InChild([] {
    OsPageSource source;
    char* const old = MapBytes(source, 2 * kMiB);
    if (!RefuseCall(SYS_mremap)) _exit(kNoFilter);
    const size_t addresses_bytes = AddressSpaceBytes();
    for (int i = 0; i < 10; ++i) {
      char* const place = MapPlace(source, 2 * kMiB, 64 * kMiB);
      if (source.Move(old, 2 * kMiB, place, 64 * kMiB)) _exit(kMoved);
    }
    _exit(AddressSpaceBytes() < addresses_bytes + 64 * kMiB ? kDone : kLost);
  });
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoFilter) GTEST_SKIP() << "no seccomp()";
  EXPECT_EQ(WEXITSTATUS(status), kDone);
}

TEST(OsPageSource, MovesAlsoWhereItsAddressesGoOnBehindIt) {
  OsPageSource source;
  char* const old = MapBytes(source, 2 * kMiB);
  source.ShrinkInPlace(old, 2 * kMiB, kMiB);
  old[0] = 7;
  char* const place = MapPlace(source, kMiB, 4 * kMiB);
  ASSERT_TRUE(source.Move(old, kMiB, place, 4 * kMiB));
  EXPECT_EQ(place[0], 7);
  EXPECT_FALSE(IsMapped(old));
  EXPECT_FALSE(IsMapped(old + kMiB)) << "where it was extended to see whether it is one";
  source.Unmap(place, 4 * kMiB);
}

// Has the kernel make as many mappings as the process may have, but for some. False where
// these are very many.
bool UseUpMappings(OsPageSource& source, size_t spare_mappings) {
  const size_t bytes = 200000 * PageBytes();
  char* const many = MapBytes(source, bytes);
  size_t i = 0;
  while (i < bytes && mprotect(many + i, PageBytes(), PROT_READ) == 0) {
    i += 2 * PageBytes();
  }
  if (i >= bytes) return false;
  for (size_t spare = 0; spare < spare_mappings; spare += 2) {
    i -= 2 * PageBytes();
    if (mprotect(many + i, PageBytes(), PROT_READ | PROT_WRITE) != 0) abort();
  }
  return true;
}

// But for one place.
TEST(OsPageSource, LosesNoAddressesWhereTheKernelHasTooManyMappings) {
  if (kUnderAsan || kUnderTsan) GTEST_SKIP() << "the sanitizer needs mappings of its own";
  enum { kDone, kHasMore };
  const auto lose_none = [](bool out) {
    // A place, and not all that a move takes: how many mappings that is differs.
    constexpr int kSpareMappings = 16;
    OsPageSource source;
    if (!UseUpMappings(source, kSpareMappings)) _exit(kHasMore);
    void* taken[kSpareMappings];
    for (void*& page : taken) {
      page = mmap(nullptr, PageBytes(), PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    }
    for (void* const page : taken) {
      if (page != MAP_FAILED) munmap(page, PageBytes());
      OsPageSource mover;
      char* const old = MapBytes(mover, 2 * kMiB);
      if (old == nullptr) continue;
      old[0] = 7;
      const size_t addresses_bytes = AddressSpaceBytes();
      bool has_moved = false;
      for (int n = 0; n < 20 && !has_moved; ++n) {
        char* const place = MapPlace(mover, out ? 0 : 2 * kMiB, 64 * kMiB);
        if (place == nullptr) continue;
        has_moved = out ? mover.MoveOut(old, 2 * kMiB, place, 64 * kMiB)
                        : mover.Move(old, 2 * kMiB, place, 64 * kMiB);
      }
      if (has_moved) return;
      if (AddressSpaceBytes() > addresses_bytes + 2 * 64 * kMiB) abort();
      if (old[0] != 7) abort();
      mover.Unmap(old, 2 * kMiB);
    }
  };
  for (const bool out : {false, true}) {
    const int status = InChild([&] { lose_none(out); });
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == kHasMore) GTEST_SKIP() << "it may have very many mappings";
    EXPECT_EQ(WEXITSTATUS(status), kDone);
  }
}

TEST(OsPageSource, LeavesRoomToGrowBehindAPlace) {
  OsPageSource source;
  char* const place = MapPlace(source, 0, 4 * kMiB);
  ASSERT_NE(place, nullptr);
  EXPECT_FALSE(IsMapped(place + 4 * kMiB));
  EXPECT_FALSE(IsMapped(place + 8 * kMiB - PageBytes()));
  EXPECT_TRUE(source.GrowInPlace(place, 4 * kMiB, 8 * kMiB));
  source.Unmap(place, 8 * kMiB);
}

TEST(OsPageSource, APlaceNeedsNoRoomToGrowWhereThereIsNone) {
  if (kUnderAsan || kUnderTsan) GTEST_SKIP() << "needs a limit on addresses";
  const auto map_with_little_room = [] {
    OsPageSource source;
    const rlim_t most_bytes = AddressSpaceBytes() + 64 * kMiB;
    const rlimit limit = {most_bytes, most_bytes};
    if (setrlimit(RLIMIT_AS, &limit) != 0) abort();
    char* const place = MapPlace(source, 0, 48 * kMiB);
    if (place == nullptr || place[48 * kMiB - 1] != 0) abort();
  };
  EXPECT_EQ(InChild(map_with_little_room), 0);
}

TEST(OsPageSource, MovesAPartOfAMappingOut) {
  OsPageSource source;
  char* const old = MapBytes(source, 4 * kMiB);
  memset(old, 7, 4 * kMiB);
  char* const place = MapPlace(source, 0, 8 * kMiB);
  errno = 1234;
  ASSERT_TRUE(source.MoveOut(old + kMiB, kMiB, place, 8 * kMiB));
  EXPECT_EQ(errno, 1234);
  for (size_t i = 0; i < kMiB; ++i) ASSERT_EQ(place[i], 7);
  EXPECT_EQ(place[kMiB], 0);
  EXPECT_EQ(place[8 * kMiB - 1], 0);
  EXPECT_EQ(ResidentPages(old + kMiB, kMiB), 0u);
  EXPECT_EQ(old[kMiB - 1], 7);
  EXPECT_EQ(old[kMiB], 0);
  EXPECT_EQ(old[2 * kMiB - 1], 0);
  EXPECT_EQ(old[2 * kMiB], 7);
  EXPECT_EQ(source.statistics().mapped_bytes, 12 * kMiB);
  // One mapping for the kernel, so it can go on growing.
  char* const next = MapPlace(source, 8 * kMiB, 16 * kMiB);
  ASSERT_TRUE(source.Move(place, 8 * kMiB, next, 16 * kMiB));
  EXPECT_EQ(next[kMiB - 1], 7);
  source.Unmap(next, 16 * kMiB);
  source.Unmap(old, 4 * kMiB);
}

size_t LockedKiB() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "VmLck:") {
      size_t kib = 0;
      status >> kib;
      return kib;
    }
  }
  return 0;
}

TEST(OsPageSource, WhatIsLockedStaysLocked) {
  OsPageSource source;
  char* const old = MapBytes(source, 4 * kMiB);
  if (mlock(old, 4 * kMiB) != 0 || LockedKiB() == 0) {
    source.Unmap(old, 4 * kMiB);
    GTEST_SKIP() << "this process may not lock memory";
  }
  const size_t locked_kib = LockedKiB();
  old[0] = 1;
  char* const place = MapPlace(source, 0, 2 * kMiB);
  EXPECT_FALSE(source.MoveOut(old, kMiB, place, 2 * kMiB));
  EXPECT_EQ(old[0], 1);
  EXPECT_EQ(LockedKiB(), locked_kib);
  EXPECT_FALSE(IsMapped(place));
  source.Unmap(old, 4 * kMiB);
}

TEST(OsPageSource, KeepsSmallPagesOfAnyRange) {
  OsPageSource source;
  char* const start = MapBytes(source, 4 * kMiB);
  errno = 1234;
  source.KeepSmallPages(start + 100, 4 * kMiB - 200);
  EXPECT_EQ(errno, 1234);
  start[2 * kMiB] = 1;
  EXPECT_LE(ResidentPages(start, 4 * kMiB), 16u);
  source.Unmap(start, 4 * kMiB);
}

TEST(OsPageSource, PopulatesWhatWillBeWrittenTo) {
  OsPageSource source;
  const size_t bytes = 128 * PageBytes();
  char* const start = MapBytes(source, bytes);
  source.KeepSmallPages(start, bytes);
  start[PageBytes()] = 1;
  errno = 1234;
  source.Populate(start, 64 * PageBytes());
  EXPECT_EQ(errno, 1234);
  // Linux has it since 5.14.
  constexpr int kPopulateWrite = 23;
  const bool is_known =
      madvise(start + 64 * PageBytes(), PageBytes(), kPopulateWrite) == 0;
  EXPECT_EQ(ResidentPages(start, 64 * PageBytes()), is_known ? 64u : 1u);
  EXPECT_EQ(ResidentPages(start, bytes), is_known ? 65u : 1u);
  EXPECT_EQ(start[0], 0);
  EXPECT_EQ(start[PageBytes()], 1);
  source.Unmap(start, bytes);
}

TEST(OsPageSource, AnotherSourceMayBeAskedInItsPlace) {
  OsPageSource source;
  ScriptedPageSource other;
  char* const before = MapBytes(source, kMiB);
  source.Substitute(&other);
  other.RefuseNth(2);
  char* const during = MapBytes(source, 2 * kMiB);
  ASSERT_NE(during, nullptr);
  EXPECT_EQ(MapBytes(source, kMiB), nullptr);
  EXPECT_EQ(source.Purge(before, kMiB), Purged::kZero);
  source.KeepSmallPages(before, kMiB);
  source.Populate(before, kMiB);
  source.Guard(before, PageBytes());
  source.Unmap(before, kMiB);
  EXPECT_EQ(source.statistics().mapped_bytes, 2 * kMiB);
  char* const place = MapPlace(source, 2 * kMiB, 4 * kMiB);
  EXPECT_TRUE(source.Move(during, 2 * kMiB, place, 4 * kMiB));
  EXPECT_FALSE(source.GrowInPlace(place, kMiB, 2 * kMiB));
  ASSERT_EQ(other.calls().size(), 10u);
  EXPECT_EQ(other.calls()[4].kind, Kind::kPopulate);
  EXPECT_EQ(other.calls()[9].kind, Kind::kGrow);

  source.Substitute(nullptr);
  source.Unmap(place, 4 * kMiB);
  EXPECT_EQ(source.statistics().mapped_bytes, 0u);
  EXPECT_EQ(other.calls().size(), 10u);
}

TEST(OsPageSource, CountsCallsAndThePeak) {
  OsPageSource source;
  char* const first = MapBytes(source, 2 * kMiB);
  char* const second = MapBytes(source, kMiB);
  source.Unmap(first, 2 * kMiB);
  ASSERT_EQ(source.Purge(second, kMiB), Purged::kZero);
  const PageSource::Statistics statistics = source.statistics();
  EXPECT_EQ(statistics.mapped_bytes, kMiB);
  EXPECT_EQ(statistics.peak_mapped_bytes, 3 * kMiB);
  EXPECT_EQ(statistics.map_calls, 2u);
  EXPECT_EQ(statistics.unmap_calls, 1u);
  EXPECT_EQ(statistics.purge_calls, 1u);
  EXPECT_EQ(statistics.purged_bytes, kMiB);
  source.Unmap(second, kMiB);
}

TEST(PageSourceDeathTest, RefusesPagesThatAreTooLarge) {
  EXPECT_EQ(internal::CheckPageBytes(size_t{16} << 10), size_t{16} << 10);
  EXPECT_EQ(internal::CheckPageBytes(size_t{64} << 10), size_t{64} << 10);
  EXPECT_EXIT(internal::CheckPageBytes(size_t{128} << 10),
              testing::KilledBySignal(SIGABRT),
              "quarry: the system has pages of 131072 bytes and Quarry is made "
              "for at most 65536, aborting\n$");
}

TEST(OsPageSourceDeathTest, AGuardedPageFaults) {
  OsPageSource source;
  char* const start = MapBytes(source, 2 * PageBytes());
  source.Guard(start + PageBytes(), PageBytes());
  start[PageBytes() - 1] = 1;
  // A sanitizer turns the signal into an exit.
  EXPECT_DEATH(*const_cast<volatile char*>(start + PageBytes()) = 1, "");
  source.Unmap(start, 2 * PageBytes());
}

// A source that leaves out what it cannot do.
class MapOnly final : public PageSource {
 private:
  void* MapPages(size_t bytes, size_t alignment) override {
    return OsPages().Map(bytes, alignment);
  }
  void UnmapPages(void* start, size_t bytes) override {
    OsPages().Unmap(start, bytes);
  }
};

// A source that knows what is resident: a first page.
class FirstPageOnly final : public PageSource {
 public:
  void* first = nullptr;

 private:
  size_t ResidentBytes(void* start, size_t bytes) override {
    return start == first ? bytes : 0;
  }
};

TEST(PageSource, ARangeOfWhichTheFirstPageIsResidentIsNoHugePage) {
  FirstPageOnly source;
  alignas(kLargestPageBytes) static char range[2 * kLargestPageBytes];
  source.first = range;
  EXPECT_FALSE(source.FinishHugePage(range, sizeof(range)));
  source.first = range + sizeof(range) - PageBytes();
  EXPECT_TRUE(source.FinishHugePage(range, sizeof(range)));
}

TEST(PageSource, WhatASourceLeavesOutIsRefused) {
  MapOnly source;
  char* const start = MapBytes(source, kMiB);
  char* const place = MapPlace(source, kMiB, 2 * kMiB);
  EXPECT_EQ(source.Purge(start, kMiB), Purged::kRefused);
  source.PreferHugePages(start, kMiB);
  EXPECT_TRUE(source.FinishHugePage(start, kMiB)) << "for all that is known";
  EXPECT_FALSE(source.IsResident(start)) << "likewise";
  EXPECT_FALSE(source.IsMostlyResident(start, kMiB)) << "likewise";
  EXPECT_FALSE(source.GrowInPlace(start, kMiB, 2 * kMiB));
  EXPECT_FALSE(source.Move(start, kMiB, place, 2 * kMiB));
  source.Guard(start, PageBytes());
  source.KeepSmallPages(start, kMiB);
  source.Populate(start, kMiB);
  start[0] = 1;
  source.MakeZero(start, kMiB);
  EXPECT_EQ(start[0], 0);
  EXPECT_FALSE(IsMapped(place));
  EXPECT_EQ(source.statistics().mapped_bytes, kMiB);
  EXPECT_EQ(source.statistics().purge_calls, 0u);
  source.Unmap(start, kMiB);
}

TEST(ScriptedPageSource, RefusesTheNthCallAndRecordsAll) {
  ScriptedPageSource source;
  source.RefuseNth(2);
  char* const first = MapBytes(source, kMiB);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(source.Map(kMiB, 1), nullptr);
  EXPECT_EQ(source.Purge(first, kMiB), Purged::kZero);
  source.Unmap(first, kMiB);
  ASSERT_EQ(source.calls().size(), 4u);
  EXPECT_TRUE(source.calls()[1].refused);
  EXPECT_EQ(source.calls()[3].kind, Kind::kUnmap);
  EXPECT_EQ(source.statistics().mapped_bytes, 0u);
}

}  // namespace
}  // namespace quarry
