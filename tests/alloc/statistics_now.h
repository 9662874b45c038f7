// What quarry_statistics() says at this moment.
#ifndef QUARRY_TESTS_ALLOC_STATISTICS_NOW_H_
#define QUARRY_TESTS_ALLOC_STATISTICS_NOW_H_

#include <stddef.h>

#include "alloc/quarry.h"
#include "gtest/gtest.h"

namespace quarry {

inline quarry_statistics_t Statistics() {
  quarry_statistics_t statistics;
  statistics.size = sizeof(statistics);
  EXPECT_EQ(quarry_statistics(&statistics), 0);
  return statistics;
}

inline void ExpectBalanced(const quarry_statistics_t& s) {
  EXPECT_EQ(s.mapped_bytes, s.live_bytes + s.cached_bytes + s.slab_free_bytes +
                                s.arena_free_bytes + s.huge_cached_bytes +
                                s.metadata_bytes);
  EXPECT_EQ(s.live_bytes,
            s.live_small_bytes + s.live_medium_bytes + s.live_huge_bytes);
  EXPECT_GE(s.peak_mapped_bytes, s.mapped_bytes);
  EXPECT_LE(s.arena_dirty_bytes, s.arena_free_bytes);
}

inline size_t LiveBytes() { return Statistics().live_bytes; }

}  // namespace quarry

#endif  // QUARRY_TESTS_ALLOC_STATISTICS_NOW_H_
