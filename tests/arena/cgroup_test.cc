#include "arena/cgroup.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(ParseCgroupLimit, ReadsANumber) {
  EXPECT_EQ(ParseCgroupLimit("1073741824\n"), size_t{1} << 30);
  EXPECT_EQ(ParseCgroupLimit("4096"), 4096u);
}

TEST(ParseCgroupLimit, IsZeroForNoLimit) {
  EXPECT_EQ(ParseCgroupLimit("max\n"), 0u);
  EXPECT_EQ(ParseCgroupLimit(""), 0u);
  EXPECT_EQ(ParseCgroupLimit("\n"), 0u);
  EXPECT_EQ(ParseCgroupLimit("12x\n"), 0u);
  EXPECT_EQ(ParseCgroupLimit("9223372036854771712\n"), 0u);
  EXPECT_EQ(ParseCgroupLimit("99999999999999999999999999\n"), 0u);
}

constexpr char kHybrid[] =
    "9:name=systemd:/\n"
    "4:memory:/a/b:c\n"
    "2:cpu,cpuacct:/shared\n"
    "0::/unified/leaf\n";

TEST(FindCgroupPath, FindsEachController) {
  EXPECT_EQ(FindCgroupPath(kHybrid, ""), "/unified/leaf");
  EXPECT_EQ(FindCgroupPath(kHybrid, "memory"), "/a/b:c");
  EXPECT_EQ(FindCgroupPath(kHybrid, "cpuacct"), "/shared");
  EXPECT_EQ(FindCgroupPath("0::/x", ""), "/x");
}

TEST(FindCgroupPath, IsEmptyWhereThereIsNone) {
  EXPECT_EQ(FindCgroupPath(kHybrid, "mem"), "");
  EXPECT_EQ(FindCgroupPath("", ""), "");
  EXPECT_EQ(FindCgroupPath("nonsense", "memory"), "");
}

// The files of a machine that there is not.
class CgroupMemoryLimitTest : public testing::Test {
 protected:
  CgroupMemoryLimitTest()
      : root_(testing::TempDir() + "/" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
  }
  ~CgroupMemoryLimitTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  size_t Limit() { return CgroupMemoryLimit(root_.c_str()); }

  const std::string root_;
};

TEST_F(CgroupMemoryLimitTest, IsTheSmallerOfHighAndMax) {
  Write("/proc/self/cgroup", "0::/a\n");
  Write("/sys/fs/cgroup/a/memory.high", "3000000\n");
  Write("/sys/fs/cgroup/a/memory.max", "4000000\n");
  EXPECT_EQ(Limit(), 3000000u);
  Write("/sys/fs/cgroup/a/memory.high", "max\n");
  EXPECT_EQ(Limit(), 4000000u);
  Write("/sys/fs/cgroup/a/memory.max", "max\n");
  EXPECT_EQ(Limit(), 0u);
}

TEST_F(CgroupMemoryLimitTest, GroupsAboutTheGroupCountToo) {
  Write("/proc/self/cgroup", "0::/a/b/c\n");
  Write("/sys/fs/cgroup/a/b/c/memory.max", "max\n");
  Write("/sys/fs/cgroup/a/memory.max", "5000000\n");
  EXPECT_EQ(Limit(), 5000000u);
}

TEST_F(CgroupMemoryLimitTest, AContainerMaySeeItsOwnGroupAsTheTop) {
  Write("/proc/self/cgroup", "0::/docker/0123\n");
  Write("/sys/fs/cgroup/memory.max", "6000000\n");
  EXPECT_EQ(Limit(), 6000000u);
}

TEST_F(CgroupMemoryLimitTest, TheFirstVersionCountsWhereTheSecondIsAbsent) {
  Write("/proc/self/cgroup", "4:memory:/a\n0::/\n");
  Write("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "7000000\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "9223372036854771712\n");
  EXPECT_EQ(Limit(), 7000000u);
  Write("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(Limit(), 0u);
}

TEST_F(CgroupMemoryLimitTest, IsNoneWhereThereAreNoFiles) {
  EXPECT_EQ(Limit(), 0u);
  Write("/proc/self/cgroup", "0::/a\n");
  EXPECT_EQ(Limit(), 0u);
}

TEST(CgroupMemoryLimit, LooksAtThisMachine) {
  const size_t bytes = CgroupMemoryLimit();
  EXPECT_TRUE(bytes == 0 || bytes >= size_t{1} << 20);
}

}  // namespace
}  // namespace quarry
