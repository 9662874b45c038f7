#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "alloc/statistics.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

HeapStatistics Example() {
  HeapStatistics s;
  s.mapped_bytes = 10000000;
  s.peak_mapped_bytes = 12000000;
  s.live_bytes = 5000000;
  s.cached_bytes = 500000;
  s.slab_free_bytes = 1500000;
  s.arena_free_bytes = 2000000;
  s.huge_cached_bytes = 0;
  s.metadata_bytes = 1000000;
  s.live_small_bytes = 3000000;
  s.live_medium_bytes = 0;
  s.live_huge_bytes = 2000000;
  s.live_huge_blocks = 1;
  s.threads = 3;
  s.arenas = 2;
  s.segments = 4;
  s.slabs = 50;
  s.slabs_orphaned = 5;
  s.os_map_calls = 11;
  s.os_unmap_calls = 12;
  s.os_purge_calls = 13;
  s.refills = 21;
  s.flushes = 22;
  s.remote_frees = 23;
  s.drained_blocks = 24;
  s.slabs_made = 60;
  s.slabs_returned = 10;
  s.adoptions = 6;
  s.mappings = 5;
  s.arena_dirty_bytes = 1000000;
  s.soft_limit_bytes = 20000000;
  s.hard_limit_bytes = 30000000;
  s.size_classes = 3;
  s.by_class[0] = {.block_bytes = 16,
                   .slabs = 2,
                   .live_blocks = 100,
                   .free_blocks = 8000};
  s.by_class[1] = {.block_bytes = 32};
  s.by_class[2] = {.block_bytes = 48,
                   .slabs = 48,
                   .live_blocks = 60000,
                   .free_blocks = 0};
  return s;
}

void Append(void* context, const char* text, size_t bytes) {
  static_cast<std::string*>(context)->append(text, bytes);
}

std::string PageOf(const HeapStatistics& statistics) {
  std::string page;
  PrintStatistics(statistics, Append, &page);
  return page;
}

std::string XmlOf(const HeapStatistics& statistics) {
  std::string xml;
  PrintStatisticsXml(statistics, Append, &xml);
  return xml;
}

// With every number at its largest.
HeapStatistics Largest() {
  HeapStatistics s;
  auto* words = reinterpret_cast<size_t*>(&s);
  std::fill(words, words + sizeof(s) / sizeof(size_t), SIZE_MAX);
  s.size_classes = HeapStatistics::kMaxSizeClasses;
  return s;
}

TEST(StatisticsPrint, ThePage) {
  EXPECT_EQ(
      PageOf(Example()),
      "quarry: memory of process " + std::to_string(getpid()) +
          "\n"
          "                                           bytes\n"
          "  held by the program                    5000000"
          "           4.8 MiB    50.0 %\n"
          "+ free blocks kept by threads             500000"
          "           0.5 MiB     5.0 %\n"
          "+ free in slabs                          1500000"
          "           1.4 MiB    15.0 %\n"
          "+ free page runs                         2000000"
          "           1.9 MiB    20.0 %\n"
          "+ mappings kept for reuse                      0"
          "           0.0 MiB     0.0 %\n"
          "+ the allocator's own                    1000000"
          "           1.0 MiB    10.0 %\n"
          "= mapped from the system                10000000"
          "           9.5 MiB   100.0 %\n"
          "  at the peak                           12000000"
          "          11.4 MiB   120.0 %\n"
          "  dirty in free page runs                1000000"
          "           1.0 MiB    10.0 %\n"
          "of what the program holds\n"
          "  small blocks                           3000000"
          "           2.9 MiB    30.0 %\n"
          "  medium blocks                                0"
          "           0.0 MiB     0.0 %\n"
          "  huge blocks                            2000000"
          "           1.9 MiB    20.0 %\n"
          "now: 3 threads, 2 arenas, 4 segments, 50 slabs (5 orphaned), "
          "1 huge blocks\n"
          "system calls: 11 map, 12 unmap, 13 purge; 5 mappings now\n"
          "limits in bytes: 20000000 soft, 30000000 hard; 0 is none\n"
          "threads: 21 refills, 22 flushes, 23 remote frees, 24 drained\n"
          "slabs: 60 made, 10 returned, 6 adopted\n"
          "  block bytes     slabs       live blocks       free blocks\n"
          "           16         2               100              8000\n"
          "           48        48             60000                 0\n");
}

TEST(StatisticsPrint, AnEmptyHeapDividesByNothing) {
  const std::string page = PageOf(HeapStatistics());
  EXPECT_NE(page.find("  held by the program                          0"
                      "           0.0 MiB     0.0 %\n"),
            std::string::npos);
}

TEST(StatisticsPrint, LimitsThatAreNotSetAreNotPrinted) {
  EXPECT_EQ(PageOf(HeapStatistics()).find("limits"), std::string::npos);
}

TEST(StatisticsPrint, LinesStayWithinATerminalForHeapsOfTebibytes) {
  HeapStatistics s = Example();
  s.mapped_bytes = s.live_bytes = size_t{64} << 40;
  std::istringstream page(PageOf(s));
  for (std::string line; std::getline(page, line);) {
    EXPECT_LE(line.size(), 80u) << line;
  }
}

TEST(StatisticsPrint, TheLargestNumbersAreWhole) {
  const std::string page = PageOf(Largest());
  EXPECT_NE(page.find("18446744073709551615"), std::string::npos);
  EXPECT_NE(XmlOf(Largest()).find("18446744073709551615"), std::string::npos);
}

TEST(StatisticsPrint, AFileGetsTheSamePage) {
  const std::string path = testing::TempDir() + "/statistics_print_test";
  const int file = open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0600);
  ASSERT_GE(file, 0);
  errno = EDOM;
  PrintStatistics(Largest(), file);
  EXPECT_EQ(errno, EDOM);
  std::string page(100000, '\0');
  page.resize(static_cast<size_t>(pread(file, page.data(), page.size(), 0)));
  EXPECT_EQ(page, PageOf(Largest()));
  close(file);
  unlink(path.c_str());
}

TEST(StatisticsPrint, AFileThatTakesNothingIsLeftAlone) {
  errno = EDOM;
  PrintStatistics(Example(), -1);
  EXPECT_EQ(errno, EDOM);
}

TEST(StatisticsPrint, TheXml) {
  const std::string xml = XmlOf(Example());
  const std::string totals =
      "<total type=\"fast\" count=\"0\" size=\"0\"/>\n"
      "<total type=\"rest\" count=\"8000\" size=\"4000000\"/>\n";
  const std::string sizes =
      "<system type=\"current\" size=\"10000000\"/>\n"
      "<system type=\"max\" size=\"12000000\"/>\n"
      "<aspace type=\"total\" size=\"10000000\"/>\n"
      "<aspace type=\"mprotect\" size=\"10000000\"/>\n";
  EXPECT_EQ(xml.find("<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n"
                     "<size from=\"16\" to=\"16\" total=\"128000\" "
                     "count=\"8000\"/>\n</sizes>\n" +
                     totals + sizes + "</heap>\n" + totals +
                     "<total type=\"mmap\" count=\"1\" size=\"2000000\"/>\n" +
                     sizes + "<quarry>\n" +
                     "<figure name=\"mapped_bytes\" value=\"10000000\"/>\n"),
            0u)
      << xml;
  EXPECT_NE(xml.find("<figure name=\"adoptions\" value=\"6\"/>\n"
                     "<figure name=\"mappings\" value=\"5\"/>\n"
                     "<figure name=\"arena_dirty_bytes\" value=\"1000000\"/>\n"
                     "<figure name=\"soft_limit_bytes\" value=\"20000000\"/>\n"
                     "<figure name=\"hard_limit_bytes\" value=\"30000000\"/>\n"
                     "<class block_bytes=\"16\" slabs=\"2\" "
                     "live_blocks=\"100\" free_blocks=\"8000\"/>\n"),
            std::string::npos)
      << xml;
  EXPECT_EQ(xml.substr(xml.size() - 20), "</quarry>\n</malloc>\n");
}

}  // namespace
}  // namespace quarry
