#include "arena/system_file.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "gtest/gtest.h"

namespace quarry {
namespace {

TEST(ReadSystemFile, ReadsAsMuchAsThereIsRoomFor) {
  char text[100] = {};
  ASSERT_GT(ReadSystemFile("/proc/self/stat", text, sizeof(text)), 10u);
  EXPECT_GT(atoi(text), 0);
  EXPECT_EQ(ReadSystemFile("/proc/self/stat", text, 3), 3u);
}

TEST(ReadSystemFile, IsEmptyWhereThereIsNoFileAndKeepsErrno) {
  char text[10];
  errno = 1234;
  EXPECT_EQ(ReadSystemFile("/proc/self/nonexistent", text, sizeof(text)), 0u);
  EXPECT_EQ(ReadSystemFile("/proc", text, sizeof(text)), 0u);
  EXPECT_EQ(errno, 1234);
}

TEST(PathBuffer, IsMadeOfParts) {
  PathBuffer path;
  path.Append("/sys").Append("/node/x", 5);
  EXPECT_STREQ(path.text(), "/sys/node");
  path.CutTo(4);
  EXPECT_STREQ(path.Append("/a").text(), "/sys/a");
}

TEST(PathBuffer, CutsOffWhatIsTooLong) {
  PathBuffer path;
  path.Append(std::string(100000, 'x').c_str());
  EXPECT_EQ(strlen(path.text()), path.bytes());
  EXPECT_LT(path.bytes(), 100000u);
}

}  // namespace
}  // namespace quarry
