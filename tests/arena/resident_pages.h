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

}  // namespace quarry

#endif  // QUARRY_TESTS_ARENA_RESIDENT_PAGES_H_
