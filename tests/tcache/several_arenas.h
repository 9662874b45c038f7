// A test that includes this has three arenas, also on a machine of one processor,
// and may have them on one node, also on a machine of several.
#ifndef QUARRY_TESTS_TCACHE_SEVERAL_ARENAS_H_
#define QUARRY_TESTS_TCACHE_SEVERAL_ARENAS_H_

#include "arena/numa.h"
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

// While one lives, all threads run on the same node.
class OnOneNode {
 public:
  OnOneNode() { numa.Substitute(1, [] { return size_t{0}; }); }
  ~OnOneNode() { numa.Substitute(0, nullptr); }
  OnOneNode(const OnOneNode&) = delete;
  OnOneNode& operator=(const OnOneNode&) = delete;
};

}  // namespace quarry

#endif  // QUARRY_TESTS_TCACHE_SEVERAL_ARENAS_H_
