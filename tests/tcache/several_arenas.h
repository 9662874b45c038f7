// A test that includes this has three arenas, also on a machine of one processor.
#ifndef QUARRY_TESTS_TCACHE_SEVERAL_ARENAS_H_
#define QUARRY_TESTS_TCACHE_SEVERAL_ARENAS_H_

#include "arena/process_arenas.h"
#include "arena/settings.h"
#include "gtest/gtest.h"

namespace quarry {

class SeveralArenas : public testing::Environment {
  void SetUp() override {
    settings.arenas_max = 3;
    ASSERT_EQ(ArenaCount(), 3u);
  }
};
[[maybe_unused]] inline const auto* const several_arenas =
    testing::AddGlobalTestEnvironment(new SeveralArenas);

}  // namespace quarry

#endif  // QUARRY_TESTS_TCACHE_SEVERAL_ARENAS_H_
