#include "alloc/options.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

#include "arena/limits.h"
#include "arena/settings.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

// What `write` writes to the file descriptor that it is given.
template <typename Write>
std::string Written(const Write& write) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  write(ends[1]);
  close(ends[1]);
  std::string text;
  char part[512];
  for (ssize_t bytes; (bytes = read(ends[0], part, sizeof(part))) > 0;) {
    text.append(part, static_cast<size_t>(bytes));
  }
  close(ends[0]);
  return text;
}

std::string Complaints(const char* text) {
  return Written([text](int file) { ApplyOptions(text, file); });
}

class Options : public testing::Test {
 protected:
  ~Options() override {
    const Settings defaults;
    settings.mmap_threshold_bytes = defaults.mmap_threshold_bytes.load();
    settings.trim_threshold_bytes = defaults.trim_threshold_bytes.load();
    settings.mmap_threshold_adapts = defaults.mmap_threshold_adapts.load();
    settings.decay_ms = defaults.decay_ms.load();
    settings.maintenance = defaults.maintenance.load();
    settings.lazy_purge = defaults.lazy_purge.load();
    settings.huge_pages = defaults.huge_pages.load();
    SetMemoryLimits(0, 0);
    settings.arenas_max = defaults.arenas_max.load();
    settings.parked_caches = defaults.parked_caches.load();
    settings.deepbind = defaults.deepbind.load();
    settings.check_sizes = defaults.check_sizes.load();
    settings.perturb_byte = defaults.perturb_byte.load();
    ApplyOptions("stats_at_exit:0", STDERR_FILENO);
  }
};

TEST_F(Options, EachOneSetsItsSetting) {
  EXPECT_EQ(Complaints("mmap_threshold:100000,trim_threshold:7,arenas_max:3,"
                       "parked_caches:4,deepbind:1,check_sizes:0,perturb:90,"
                       "stats_at_exit:1"),
            "");
  EXPECT_EQ(settings.mmap_threshold_bytes, 100000u);
  EXPECT_EQ(settings.trim_threshold_bytes, 7u);
  EXPECT_EQ(settings.arenas_max, 3u);
  EXPECT_EQ(settings.parked_caches, 4u);
  EXPECT_TRUE(settings.deepbind);
  EXPECT_FALSE(settings.check_sizes);
  EXPECT_EQ(settings.perturb_byte, 90);
  EXPECT_GE(OpenForStatisticsAtExit(), 0);
}

TEST_F(Options, WhatGoesBackIsSet) {
  EXPECT_EQ(Complaints("decay_ms:0,maintenance:0,lazy_purge:1"), "");
  EXPECT_EQ(settings.decay_ms, 0u);
  EXPECT_FALSE(settings.maintenance);
  EXPECT_TRUE(settings.lazy_purge);
  EXPECT_EQ(Complaints("decay_ms:86400000,maintenance:1,lazy_purge:0"), "");
  EXPECT_EQ(settings.decay_ms, 86400000u);
  EXPECT_TRUE(settings.maintenance);
  EXPECT_FALSE(settings.lazy_purge);
}

TEST_F(Options, LimitsAreSetOneByOne) {
  EXPECT_EQ(Complaints("soft_limit:1g"), "");
  EXPECT_EQ(settings.soft_limit_bytes, size_t{1} << 30);
  EXPECT_EQ(settings.hard_limit_bytes, 0u);
  EXPECT_EQ(Complaints("hard_limit:2g"), "");
  EXPECT_EQ(settings.soft_limit_bytes, size_t{1} << 30);
  EXPECT_EQ(settings.hard_limit_bytes, size_t{2} << 30);
  EXPECT_EQ(Complaints("soft_limit:0,hard_limit:0"), "");
  EXPECT_EQ(settings.soft_limit_bytes, 0u);
  EXPECT_EQ(settings.hard_limit_bytes, 0u);
}

TEST_F(Options, AChoiceHasNames) {
  EXPECT_EQ(Complaints("thp:never"), "");
  EXPECT_EQ(settings.huge_pages, HugePagePolicy::kNever);
  EXPECT_EQ(Complaints("thp:system"), "");
  EXPECT_EQ(settings.huge_pages, HugePagePolicy::kSystem);
  EXPECT_EQ(Complaints("thp:grown"), "");
  EXPECT_EQ(settings.huge_pages, HugePagePolicy::kGrown);
  for (const char* value : {"", "0", "1", "neve", "never1", "Never",
                            "never|system", "never|system|grown", "|"}) {
    EXPECT_EQ(Complaints(("thp:" + std::string(value)).c_str()),
              "quarry: QUARRY_OPTIONS: \"" + std::string(value) +
                  "\" is no value for thp (never|system|grown), ignored\n");
  }
  EXPECT_EQ(settings.huge_pages, HugePagePolicy::kGrown);
}

TEST_F(Options, AThresholdThatIsSetDoesNotAdapt) {
  for (const char* text : {"mmap_threshold:1m", "trim_threshold:1m"}) {
    settings.mmap_threshold_adapts = true;
    EXPECT_EQ(Complaints(text), "");
    EXPECT_FALSE(settings.mmap_threshold_adapts);
  }
}

TEST_F(Options, StatisticsAtExitReachTheFirstStderr) {
  EXPECT_EQ(OpenForStatisticsAtExit(), -1);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int real_stderr = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  ApplyOptions("stats_at_exit:1", STDERR_FILENO);
  // The program now closes it, and opens something else.
  dup2(real_stderr, STDERR_FILENO);
  close(real_stderr);
  close(ends[1]);

  const int file = OpenForStatisticsAtExit();
  ASSERT_GE(file, 0);
  EXPECT_EQ(write(file, "page", 4), 4);
  char text[4];
  EXPECT_EQ(read(ends[0], text, 4), 4);
  EXPECT_EQ(std::string(text, 4), "page");
  EXPECT_EQ(fcntl(file, F_GETFD), FD_CLOEXEC);

  // A child that was forked prints nothing.
  EXPECT_EXIT(_exit(OpenForStatisticsAtExit() == -1 ? 0 : 1),
              testing::ExitedWithCode(0), "");

  // Nor is there a page when the program took the number for another file.
  const int other = open("/dev/null", O_WRONLY);
  dup2(other, file);
  close(other);
  EXPECT_EQ(OpenForStatisticsAtExit(), -1);
  close(file);
  EXPECT_EQ(OpenForStatisticsAtExit(), -1);
  close(ends[0]);
}

TEST_F(Options, TheLastOfOneNameCounts) {
  EXPECT_EQ(Complaints("arenas_max:3,arenas_max:4"), "");
  EXPECT_EQ(settings.arenas_max, 4u);
}

TEST_F(Options, NothingIsNoMistake) {
  EXPECT_EQ(Complaints(""), "");
  EXPECT_EQ(Complaints(","), "");
  EXPECT_EQ(Complaints(",,arenas_max:5,"), "");
  EXPECT_EQ(settings.arenas_max, 5u);
}

TEST_F(Options, BytesMayHaveASuffix) {
  EXPECT_EQ(Complaints("mmap_threshold:64k"), "");
  EXPECT_EQ(settings.mmap_threshold_bytes, size_t{64} << 10);
  EXPECT_EQ(Complaints("mmap_threshold:3M"), "");
  EXPECT_EQ(settings.mmap_threshold_bytes, size_t{3} << 20);
  EXPECT_EQ(Complaints("mmap_threshold:2g"), "");
  EXPECT_EQ(settings.mmap_threshold_bytes, size_t{2} << 30);
  EXPECT_EQ(Complaints("trim_threshold:9223372036854775807"), "");
  EXPECT_EQ(settings.trim_threshold_bytes, size_t{PTRDIFF_MAX});
}

TEST_F(Options, AnUnknownNameIsReportedAndTheRestCounts) {
  EXPECT_EQ(Complaints("arena_max:3,arenas_max:6"),
            "quarry: QUARRY_OPTIONS: there is no option \"arena_max\" "
            "(help:1 lists them), ignored\n");
  EXPECT_EQ(settings.arenas_max, 6u);
  EXPECT_EQ(Complaints(":3"),
            "quarry: QUARRY_OPTIONS: there is no option \"\" "
            "(help:1 lists them), ignored\n");
  // A prefix of a name is another name.
  EXPECT_EQ(Complaints("arenas:3"),
            "quarry: QUARRY_OPTIONS: there is no option \"arenas\" "
            "(help:1 lists them), ignored\n");
}

TEST_F(Options, WhatIsNoPairIsReported) {
  EXPECT_EQ(Complaints("arenas_max"),
            "quarry: QUARRY_OPTIONS: \"arenas_max\" is not name:value, "
            "ignored\n");
  EXPECT_EQ(Complaints("arenas_max=3"),
            "quarry: QUARRY_OPTIONS: \"arenas_max=3\" is not name:value, "
            "ignored\n");
}

TEST_F(Options, WhatIsLongOrStrangeIsQuotedInPart) {
  const std::string name(1000, 'n');
  EXPECT_EQ(Complaints((name + ":1").c_str()),
            "quarry: QUARRY_OPTIONS: there is no option \"" + std::string(100, 'n') +
                "...\" (help:1 lists them), ignored\n");
  EXPECT_EQ(Complaints("thp:\033[2J\n\377"),
            "quarry: QUARRY_OPTIONS: \"?[2J??\" is no value for thp "
            "(never|system|grown), ignored\n");
}

TEST_F(Options, ASoftLimitAboveTheHardOneIsNone) {
  for (const char* text : {"soft_limit:2g,hard_limit:1g", "hard_limit:1g,soft_limit:2g"}) {
    EXPECT_EQ(Complaints(text),
              "quarry: QUARRY_OPTIONS: soft_limit is more than hard_limit, ignored\n");
    EXPECT_EQ(settings.soft_limit_bytes, 0u);
    EXPECT_EQ(settings.hard_limit_bytes, size_t{1} << 30);
    SetMemoryLimits(0, 0);
  }
  EXPECT_EQ(Complaints("soft_limit:1g,hard_limit:1g"), "");
  EXPECT_EQ(settings.soft_limit_bytes, size_t{1} << 30);
}

TEST_F(Options, ABadValueIsReportedAndChangesNothing) {
  for (const char* value : {"", "k", "-1", "+1", " 1", "1 ", "0x10", "12q",
                            "1kk", "1.5", "9223372036854775808",
                            "99999999999999999999999", "9007199254740992k",
                            "8589934592g"}) {
    EXPECT_EQ(Complaints(("mmap_threshold:" + std::string(value)).c_str()),
              "quarry: QUARRY_OPTIONS: \"" + std::string(value) +
                  "\" is no value for mmap_threshold (bytes), ignored\n");
  }
  EXPECT_EQ(settings.mmap_threshold_bytes,
            Settings().mmap_threshold_bytes.load());
  EXPECT_EQ(Complaints("arenas_max:4k"),
            "quarry: QUARRY_OPTIONS: \"4k\" is no value for arenas_max "
            "(a count), ignored\n");
  EXPECT_EQ(Complaints("perturb:256"),
            "quarry: QUARRY_OPTIONS: \"256\" is no value for perturb "
            "(0 to 255), ignored\n");
  EXPECT_EQ(Complaints("stats_at_exit:2"),
            "quarry: QUARRY_OPTIONS: \"2\" is no value for stats_at_exit "
            "(0 or 1), ignored\n");
  EXPECT_EQ(Complaints("maintenance:2"),
            "quarry: QUARRY_OPTIONS: \"2\" is no value for maintenance "
            "(0 or 1), ignored\n");
  EXPECT_EQ(Complaints("lazy_purge:no"),
            "quarry: QUARRY_OPTIONS: \"no\" is no value for lazy_purge "
            "(0 or 1), ignored\n");
  for (const char* value : {"86400001", "1s", "-1", "1k", ""}) {
    EXPECT_EQ(Complaints(("decay_ms:" + std::string(value)).c_str()),
              "quarry: QUARRY_OPTIONS: \"" + std::string(value) +
                  "\" is no value for decay_ms (milliseconds), ignored\n");
  }
  for (const char* name : {"soft_limit", "hard_limit"}) {
    EXPECT_EQ(Complaints((std::string(name) + ":1t").c_str()),
              "quarry: QUARRY_OPTIONS: \"1t\" is no value for " +
                  std::string(name) + " (bytes), ignored\n");
  }
  EXPECT_EQ(Complaints("help:yes"),
            "quarry: QUARRY_OPTIONS: \"yes\" is no value for help "
            "(0 or 1), ignored\n");
}

TEST_F(Options, EveryMistakeHasItsLine) {
  EXPECT_EQ(Complaints("a,b:1,perturb:c"),
            "quarry: QUARRY_OPTIONS: \"a\" is not name:value, ignored\n"
            "quarry: QUARRY_OPTIONS: there is no option \"b\" "
            "(help:1 lists them), ignored\n"
            "quarry: QUARRY_OPTIONS: \"c\" is no value for perturb "
            "(0 to 255), ignored\n");
}

TEST_F(Options, AMistakeOfAnyLengthIsOneLine) {
  const std::string complaint = Complaints(std::string(5000, 'x').c_str());
  EXPECT_EQ(complaint.find("quarry: QUARRY_OPTIONS: \"xxx"), 0u);
  EXPECT_EQ(complaint.find('\n'), complaint.size() - 1);
}

TEST_F(Options, HelpPrintsTheTableOnceAfterTheComplaints) {
  const std::string table = Written(PrintOptions);
  EXPECT_EQ(Complaints("help:1,help:1"), table);
  EXPECT_EQ(Complaints("help:1,help:0"), "");
  EXPECT_EQ(Complaints("help:1,a"),
            "quarry: QUARRY_OPTIONS: \"a\" is not name:value, ignored\n" +
                table);
}

TEST_F(Options, TheTableHasTheDefaultsWhateverIsSet) {
  settings.arenas_max = 77;
  EXPECT_EQ(
      Written(PrintOptions),
      "quarry: options, as in QUARRY_OPTIONS=name:value,name:value\n"
      "  name            default    values               meaning\n"
      "  help            0          0 or 1               "
      "Print this table to stderr.\n"
      "  stats_at_exit   0          0 or 1               "
      "Print a page of statistics to stderr when the process ends.\n"
      "  stats_process   0          a count              "
      "Only the process with this id prints that page; 0 is every "
      "process.\n"
      "  mmap_threshold  4194304    bytes                "
      "Blocks of at least this size get a mapping of their own.\n"
      "  trim_threshold  67108864   bytes                "
      "Above this much free memory an arena gives some back at once.\n"
      "  decay_ms        500        milliseconds         "
      "How long memory stays free before it goes back; 0: none, but for "
      "what threads keep.\n"
      "  maintenance     1          0 or 1               "
      "A thread gives memory back while the program makes no calls.\n"
      "  lazy_purge      0          0 or 1               "
      "What goes back stays resident until the system needs it "
      "(MADV_FREE).\n"
      "  thp             grown      never|system|grown   "
      "Huge pages: for no block, as the system is set, or for what will "
      "be filled.\n"
      "  soft_limit      0          bytes                "
      "Above this much mapped memory, free memory goes back at once; 0: "
      "the cgroup's.\n"
      "  hard_limit      0          bytes                "
      "What would map more than this much fails; 0 is none.\n"
      "  arenas_max      0          a count              "
      "At most this many arenas; 0 is one for each processor, up to 32.\n"
      "  parked_caches   16         a count              "
      "At most so many caches of threads that exited wait for new ones.\n"
      "  deepbind        0          0 or 1               "
      "dlopen does what RTLD_DEEPBIND says, so that such libraries have "
      "libc's malloc.\n"
      "  check_sizes     1          0 or 1               "
      "A sized free with a wrong size ends the program; 0 frees the block.\n"
      "  perturb         0          0 to 255             "
      "Fill freed blocks with this byte and fresh ones with its "
      "complement; 0 is off.\n"
      "  bytes may end in k, m or g: 64k is 65536\n");
}

TEST_F(Options, TheEnvironmentIsReadOnce) {
  LoadOptions();
  settings.arenas_max = 77;
  setenv("QUARRY_OPTIONS", "arenas_max:5", 1);
  LoadOptions();
  EXPECT_EQ(settings.arenas_max, 77u);
}

}  // namespace
}  // namespace quarry
