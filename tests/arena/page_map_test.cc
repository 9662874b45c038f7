#include "arena/page_map.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "arena/page_source.h"
#include "arena/report.h"
#include "gtest/gtest.h"
#include "tests/arena/in_child.h"
#include "tests/arena/sanitizers.h"

namespace quarry {
namespace {

char* MapGranules(size_t granules) {
  void* const start = OsPages().Map(granules * kGranuleBytes, kGranuleBytes);
  EXPECT_NE(start, nullptr);
  EXPECT_TRUE(PageMap::Reserve(start, granules * kGranuleBytes));
  return static_cast<char*>(start);
}

// First, while there are no tables.
TEST(PageMap, TablesThatTheSystemRefusesAreAskedForAgain) {
  if (kUnderAsan || kUnderTsan) GTEST_SKIP() << "needs a limit on addresses";
  void* const p = reinterpret_cast<void*>(uintptr_t{5} << 40);
  EXPECT_EQ(InChild([p] {
              Tag tag;
              rlimit limit;
              QUARRY_CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
              const rlimit none = {0, limit.rlim_max};
              QUARRY_CHECK(setrlimit(RLIMIT_AS, &none) == 0);
              QUARRY_CHECK(!PageMap::MakeTables());
              QUARRY_CHECK(!PageMap::Reserve(p, kGranuleBytes));
              QUARRY_CHECK(PageMap::TagOf(p) == kNoTag);
              QUARRY_CHECK(PageMap::DescriptorOf(p) == nullptr);
              QUARRY_CHECK(!PageMap::HomeTagOf(p, &tag));
              QUARRY_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
              QUARRY_CHECK(PageMap::Reserve(p, kGranuleBytes));
              PageMap::Set(p, kGranuleBytes, kHugeTag, nullptr);
              QUARRY_CHECK(PageMap::TagOf(p) == kHugeTag);
            }),
            0);
}

// While no window was chosen.
TEST(PageMap, NullIsOutsideOfTheWindow) {
  Tag tag;
  EXPECT_FALSE(PageMap::HomeTagOf(nullptr, &tag));
  char* const start = MapGranules(1);
  EXPECT_FALSE(PageMap::HomeTagOf(nullptr, &tag));
  // Nor is anybody charged for the tables.
  EXPECT_EQ(OsPages().statistics().mapped_bytes, kGranuleBytes);
  OsPages().Unmap(start, kGranuleBytes);
}

TEST(PageMap, WhatWasNeverHeldHasNoTag) {
  int on_stack;
  static int in_data;
  for (const void* p :
       {static_cast<const void*>(nullptr), static_cast<const void*>(&on_stack),
        static_cast<const void*>(&in_data),
        reinterpret_cast<const void*>(~uintptr_t{0}),
        reinterpret_cast<const void*>(uintptr_t{1} << 47),
        reinterpret_cast<const void*>(uintptr_t{1} << 56)}) {
    EXPECT_EQ(PageMap::TagOf(p), kNoTag);
    EXPECT_EQ(PageMap::DescriptorOf(p), nullptr);
  }
}

TEST(PageMap, NamesEveryGranuleThatARangeTouches) {
  char* const start = MapGranules(4);
  int descriptor;
  PageMap::Set(start + kGranuleBytes, kGranuleBytes + 1, kRunTag, &descriptor);
  EXPECT_EQ(PageMap::TagOf(start + kGranuleBytes - 1), kNoTag);
  for (size_t offset : {kGranuleBytes, 2 * kGranuleBytes - 1, 2 * kGranuleBytes,
                        3 * kGranuleBytes - 1}) {
    EXPECT_EQ(PageMap::TagOf(start + offset), kRunTag);
    EXPECT_EQ(PageMap::DescriptorOf(start + offset), &descriptor);
    Tag tag = kNoTag;
    EXPECT_TRUE(PageMap::HomeTagOf(start + offset, &tag));
    EXPECT_EQ(tag, kRunTag);
    EXPECT_EQ(PageMap::SureHomeTagOf(start + offset), kRunTag);
    EXPECT_EQ(PageMap::HomeDescriptorOf(start + offset), &descriptor);
  }
  EXPECT_EQ(PageMap::TagOf(start + 3 * kGranuleBytes), kNoTag);
  PageMap::Set(start, 4 * kGranuleBytes, kNoTag, nullptr);
  EXPECT_EQ(PageMap::TagOf(start + kGranuleBytes), kNoTag);
  EXPECT_EQ(PageMap::DescriptorOf(start + kGranuleBytes), nullptr);
  OsPages().Unmap(start, 4 * kGranuleBytes);
}

// The bytes of the largest mapping that is never to lie on huge pages.
size_t LargestOnSmallPages() {
  std::ifstream maps("/proc/self/smaps");
  size_t bytes = 0, largest = 0;
  for (std::string line; std::getline(maps, line);) {
    size_t first, end;
    if (sscanf(line.c_str(), "%zx-%zx ", &first, &end) == 2) {
      bytes = end - first;
    } else if (line.rfind("VmFlags:", 0) == 0 &&
               line.find(" nh") != std::string::npos) {
      largest = std::max(largest, bytes);
    }
  }
  return largest;
}

TEST(PageMap, TheWindowIsNeverOnHugePages) {
  if (access("/sys/kernel/mm/transparent_hugepage", F_OK) != 0) {
    GTEST_SKIP() << "this kernel has no huge pages";
  }
  char* const start = MapGranules(1);
  constexpr size_t kWindowBytes = size_t{12} << 20;
  EXPECT_GE(LargestOnSmallPages(), kWindowBytes);
  OsPages().Unmap(start, kGranuleBytes);
}

// Addresses that no mapping has, far from the first segment and from each
// other, and a range over the end of a leaf.
TEST(PageMap, HoldsAddressesOutsideOfTheHomeWindow) {
  char* const home = MapGranules(1);
  int descriptor;
  for (uintptr_t address : {uintptr_t{1} << 32, uintptr_t{5} << 40,
                            (uintptr_t{1} << 47) - (1 << 20),
                            (uintptr_t{7} << 32) - kGranuleBytes}) {
    char* const p = reinterpret_cast<char*>(address);
    ASSERT_TRUE(PageMap::Reserve(p, 2 * kGranuleBytes));
    PageMap::Set(p, 2 * kGranuleBytes, kHugeTag, &descriptor);
    EXPECT_EQ(PageMap::TagOf(p - 1), kNoTag);
    EXPECT_EQ(PageMap::TagOf(p), kHugeTag);
    EXPECT_EQ(PageMap::TagOf(p + 2 * kGranuleBytes - 1), kHugeTag);
    EXPECT_EQ(PageMap::DescriptorOf(p + kGranuleBytes), &descriptor);
    EXPECT_EQ(PageMap::TagOf(p + 2 * kGranuleBytes), kNoTag);
    Tag tag = 1;
    EXPECT_FALSE(PageMap::HomeTagOf(p, &tag));
    PageMap::Set(p, 2 * kGranuleBytes, kNoTag, nullptr);
  }
  Tag tag = 1;
  EXPECT_TRUE(PageMap::HomeTagOf(home, &tag));
  EXPECT_EQ(tag, kNoTag);
  OsPages().Unmap(home, kGranuleBytes);
}

TEST(PageMap, NoOwnerHasASpecialTag) {
  for (Tag special : {kRunTag, kHugeTag}) {
    EXPECT_EQ(special & ~(kOwnerUnit - 1), kNobody);
  }
  EXPECT_EQ(kNobody % kOwnerUnit, 0u);
}

}  // namespace
}  // namespace quarry
