#include "arena/numa.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(ParseNodeList, CountsUpToTheLast) {
  EXPECT_EQ(ParseNodeList("0\n"), 1u);
  EXPECT_EQ(ParseNodeList("0-1\n"), 2u);
  EXPECT_EQ(ParseNodeList("0-1,3"), 4u);
  EXPECT_EQ(ParseNodeList("0,2-7,15\n"), 16u);
}

TEST(ParseNodeList, IsOneForNonsense) {
  EXPECT_EQ(ParseNodeList(""), 1u);
  EXPECT_EQ(ParseNodeList("\n"), 1u);
  EXPECT_EQ(ParseNodeList("0-1 7"), 1u);
  EXPECT_EQ(ParseNodeList("99999999999999999999"), 1u);
}

TEST(Numa, ReadsTheSystemsList) {
  const std::string root = testing::TempDir() + "/numa_test_root";
  const std::filesystem::path file = root + "/sys/devices/system/node/online";
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file) << "0-3\n";
  Numa machine(root.c_str());
  EXPECT_EQ(machine.nodes(), 4u);
  std::filesystem::remove_all(root);
  EXPECT_EQ(machine.nodes(), 4u) << "read once";
}

TEST(Numa, AMachineWithoutTheFileHasOneNode) {
  Numa machine("/nonexistent");
  EXPECT_EQ(machine.nodes(), 1u);
  EXPECT_EQ(machine.CurrentNode(), 0u);
}

TEST(Numa, ThisMachineHasTheNodeOfThisThread) {
  EXPECT_GE(numa.nodes(), 1u);
  EXPECT_LT(numa.CurrentNode(), numa.nodes());
}

TEST(Numa, ATestMayChooseBoth) {
  Numa machine("/nonexistent");
  machine.Substitute(3, [] { return size_t{2}; });
  EXPECT_EQ(machine.nodes(), 3u);
  EXPECT_EQ(machine.CurrentNode(), 2u);
  machine.Substitute(3, [] { return size_t{7}; });
  EXPECT_EQ(machine.CurrentNode(), 1u) << "one that came later";
  machine.Substitute(0, nullptr);
  EXPECT_EQ(machine.nodes(), 1u);
}

}  // namespace
}  // namespace quarry
