#ifndef QUARRY_TESTS_ARENA_RESIDENT_PAGES_H_
#define QUARRY_TESTS_ARENA_RESIDENT_PAGES_H_

#include <sys/mman.h>

#include <cstddef>
#include <vector>

#include "arena/page_source.h"
#include "gtest/gtest.h"

namespace quarry {

// How many of the mapped pages from start on are in memory.
inline size_t ResidentPages(void* start, size_t bytes) {
  std::vector<unsigned char> resident(bytes / PageBytes());
  EXPECT_EQ(mincore(start, bytes, resident.data()), 0);
  size_t count = 0;
  for (const unsigned char page : resident) count += page & 1;
  return count;
}

// Whether the system can make pages resident before they are touched.
inline bool CanPopulate() {
  void* const page = OsPages().Map(PageBytes(), PageBytes());
  OsPages().Populate(page, PageBytes());
  const bool can_populate = ResidentPages(page, PageBytes()) == 1;
  OsPages().Unmap(page, PageBytes());
  return can_populate;
}

}  // namespace quarry

#endif  // QUARRY_TESTS_ARENA_RESIDENT_PAGES_H_
