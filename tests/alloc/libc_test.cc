// Linked with //alloc:malloc: libc's names are Quarry's in this process.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "alloc/quarry.h"
#include "arena/maintenance_signal.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/malloc_contract.h"
#include "tests/arena/in_child.h"

// Names that no header of glibc 2.36 has.
extern "C" {
void cfree(void* block) noexcept;
void free_sized(void* block, size_t bytes) noexcept;
void free_aligned_sized(void* block, size_t alignment, size_t bytes) noexcept;
void* reallocf(void* block, size_t bytes) noexcept;
void* __libc_malloc(size_t bytes) noexcept;
void __libc_free(void* block) noexcept;
void* __libc_calloc(size_t count, size_t bytes_each) noexcept;
void* __libc_realloc(void* block, size_t bytes) noexcept;
void* __libc_reallocarray(void* block, size_t count, size_t bytes) noexcept;
void* __libc_memalign(size_t alignment, size_t bytes) noexcept;
void* __libc_valloc(size_t bytes) noexcept;
void* __libc_pvalloc(size_t bytes) noexcept;
struct mallinfo __libc_mallinfo() noexcept;
int __libc_mallopt(int parameter, int value) noexcept;
int __posix_memalign(void** block, size_t alignment, size_t bytes) noexcept;
}

namespace quarry {
namespace {

constexpr Surface kLibc = {
    .name = "Libc",
    .malloc = malloc,
    .free = free,
    .calloc = calloc,
    .realloc = realloc,
    .reallocarray = reallocarray,
    .reallocf = reallocf,
    .memalign = memalign,
    .aligned_alloc = aligned_alloc,
    .posix_memalign = posix_memalign,
    .valloc = valloc,
    .pvalloc = pvalloc,
    .usable_size = malloc_usable_size,
    .free_sized = free_sized,
    .free_aligned_sized = free_aligned_sized,
};

// The names that programs are not meant to use, and some do.
constexpr Surface kReservedNames = {
    .name = "ReservedNames",
    .malloc = __libc_malloc,
    .free = __libc_free,
    .calloc = __libc_calloc,
    .realloc = __libc_realloc,
    .reallocarray = __libc_reallocarray,
    .reallocf = reallocf,
    .memalign = __libc_memalign,
    .aligned_alloc = aligned_alloc,
    .posix_memalign = __posix_memalign,
    .valloc = __libc_valloc,
    .pvalloc = __libc_pvalloc,
    .usable_size = malloc_usable_size,
    .free_sized = free_sized,
    .free_aligned_sized = free_aligned_sized,
};

INSTANTIATE_TEST_SUITE_P(Libc, MallocContract,
                         testing::Values(kLibc, kReservedNames),
                         testing::PrintToStringParamName());

TEST(Libc, ItsNamesAreQuarrys) {
  quarry_statistics_t before;
  quarry_statistics_t after;
  before.size = after.size = sizeof(quarry_statistics_t);
  ASSERT_EQ(quarry_statistics(&before), 0);
  void* block = malloc(300 << 20);
  ASSERT_EQ(quarry_statistics(&after), 0);
  EXPECT_GE(after.live_bytes, before.live_bytes + (300 << 20));
  quarry_free(block);
}

TEST(Libc, TheLibrarysOwnAllocationsAreQuarrys) {
  char* text = nullptr;
  ASSERT_GT(asprintf(&text, "%0100d", 7), 0);
  EXPECT_EQ(malloc_usable_size(text), quarry_good_size(101));
  free(text);
}

// The figures are exact, and what is free is there, only without a thread.
const bool no_thread = (settings.maintenance = false, true);

// glibc frees the thread-local storage of threads that were joined under a lock
// that it takes, too, to start a thread: the one that gives memory back must
// not be started there. Those are the frees of a thread that made none of the
// others, so they take the slow path.
TEST(Libc, JoiningThreadsDoesNotWaitForItself) {
  EXPECT_EQ(InChild([] {
              alarm(60);
              settings.maintenance = true;
              // More stacks than glibc keeps.
              constexpr size_t kThreads = 12;
              pthread_attr_t attributes;
              pthread_attr_init(&attributes);
              pthread_attr_setstacksize(&attributes, size_t{8} << 20);
              pthread_t threads[kThreads];
              for (pthread_t& thread : threads) {
                QUARRY_CHECK(pthread_create(
                                 &thread, &attributes,
                                 [](void*) -> void* { return nullptr; },
                                 nullptr) == 0);
              }
              std::thread([&threads] {
                free(malloc(1));
                maintenance_signal.NoteWork();
                for (pthread_t thread : threads) pthread_join(thread, nullptr);
              }).join();
              free(malloc(100000));
              QUARRY_CHECK(!maintenance_signal.IsWanted());
            }),
            0);
}

TEST(Libc, CfreeIsFree) {
  void* const block = malloc(10000000);
  // Whether or not it is so large that it has a mapping of its own.
  const auto held_bytes = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const size_t before = held_bytes();
  cfree(block);
  EXPECT_LE(held_bytes() + 10000000, before);
  cfree(nullptr);
}

TEST(Libc, Mallinfo2TellsWhatIsHeld) {
  const struct mallinfo2 before = mallinfo2();
  std::vector<void*> blocks;
  for (int i = 0; i < 1000; ++i) blocks.push_back(malloc(1000));
  void* huge = malloc(200 << 20);
  const struct mallinfo2 during = mallinfo2();
  EXPECT_GE(during.uordblks, before.uordblks + 1000 * 1000);
  EXPECT_EQ(during.hblks, before.hblks + 1);
  EXPECT_GE(during.hblkhd, before.hblkhd + (200 << 20));
  EXPECT_EQ(during.arena, during.uordblks + during.fordblks);
  EXPECT_LE(during.keepcost, during.fordblks);

  free(huge);
  for (void* block : blocks) free(block);
  const struct mallinfo2 after = mallinfo2();
  EXPECT_LT(after.uordblks, during.uordblks);
  EXPECT_GT(after.ordblks, 0u);
  EXPECT_EQ(after.hblks, before.hblks);
}

TEST(Libc, MallinfoStopsAtTheLargestInt) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  void* huge = malloc(Opaque(size_t{3} << 30));
  if (huge == nullptr) GTEST_SKIP() << "this system has no 3 GiB to give";
  EXPECT_EQ(mallinfo().hblkhd, INT_MAX);
  EXPECT_EQ(__libc_mallinfo().hblkhd, INT_MAX);
  free(huge);
  EXPECT_GT(mallinfo().uordblks, 0);
  EXPECT_LT(mallinfo().hblkhd, INT_MAX);
#pragma GCC diagnostic pop
}

TEST(Libc, MallocInfoIsXmlThatAParserReads) {
  const std::string path = testing::TempDir() + "/malloc_info.xml";
  FILE* file = fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  void* block = malloc(12345);
  EXPECT_EQ(malloc_info(0, file), 0);
  free(block);
  fclose(file);
  const std::string check =
      "python3 -c '"
      "import sys, xml.etree.ElementTree as tree\n"
      "root = tree.parse(sys.argv[1]).getroot()\n"
      "assert root.tag == \"malloc\" and root.get(\"version\") == \"1\"\n"
      "system = root.find(\"system[@type=\\\"current\\\"]\")\n"
      "mapped = int(system.get(\"size\"))\n"
      "figures = {f.get(\"name\"): int(f.get(\"value\"))\n"
      "           for f in root.find(\"quarry\").findall(\"figure\")}\n"
      "assert mapped == figures[\"mapped_bytes\"] > 0\n"
      "parts = [\"live\", \"cached\", \"slab_free\", \"arena_free\",\n"
      "         \"huge_cached\", \"metadata\"]\n"
      "assert mapped == sum(figures[p + \"_bytes\"] for p in parts)\n"
      "assert len(root.find(\"quarry\").findall(\"class\")) > 10\n"
      "' " + path;
  EXPECT_EQ(system(check.c_str()), 0);
}

TEST(Libc, MallocInfoKnowsNoOptions) {
  EXPECT_EQ(malloc_info(1, stderr), EINVAL);
  EXPECT_EQ(malloc_info(-1, stderr), EINVAL);
}

TEST(Libc, MallocStatsGoesToStderr) {
  testing::internal::CaptureStderr();
  malloc_stats();
  const std::string page = testing::internal::GetCapturedStderr();
  EXPECT_EQ(page.find("quarry: memory of process "), 0u);
}

TEST(Libc, MallocTrimTellsWhetherAnythingWent) {
  std::vector<void*> blocks;
  for (int i = 0; i < 30000; ++i) {
    blocks.push_back(malloc(1000));
    memset(blocks.back(), 1, 1000);
  }
  for (void* block : blocks) free(block);
  EXPECT_EQ(malloc_trim(0), 1);
  EXPECT_EQ(malloc_trim(0), 0);
}

class Mallopt : public testing::Test {
 protected:
  ~Mallopt() override {
    settings.mmap_threshold_bytes = mmap_threshold_bytes_;
    settings.mmap_threshold_adapts = true;
    settings.trim_threshold_bytes = trim_threshold_bytes_;
    settings.mmap_threshold_adapts = true;
    settings.arenas_max = arenas_max_;
    settings.perturb_byte = 0;
  }

 private:
  const size_t mmap_threshold_bytes_ = settings.mmap_threshold_bytes;
  const size_t trim_threshold_bytes_ = settings.trim_threshold_bytes;
  const size_t arenas_max_ = settings.arenas_max;
};

TEST_F(Mallopt, SetsWhatQuarryHas) {
  EXPECT_EQ(mallopt(M_MMAP_THRESHOLD, 1 << 20), 1);
  EXPECT_EQ(settings.mmap_threshold_bytes, size_t{1} << 20);
  EXPECT_FALSE(settings.mmap_threshold_adapts);
  settings.mmap_threshold_adapts = true;
  EXPECT_EQ(mallopt(M_TRIM_THRESHOLD, 12345678), 1);
  EXPECT_EQ(settings.trim_threshold_bytes, 12345678u);
  EXPECT_FALSE(settings.mmap_threshold_adapts);
  EXPECT_EQ(mallopt(M_TRIM_THRESHOLD, -1), 1);
  EXPECT_EQ(settings.trim_threshold_bytes, SIZE_MAX);
  EXPECT_EQ(mallopt(M_ARENA_MAX, 3), 1);
  EXPECT_EQ(settings.arenas_max, 3u);
  EXPECT_EQ(__libc_mallopt(M_ARENA_MAX, 2), 1);
  EXPECT_EQ(settings.arenas_max, 2u);
}

TEST_F(Mallopt, AThresholdThatIsSetNoLongerAdapts) {
  for (const int parameter : {M_MMAP_THRESHOLD, M_TRIM_THRESHOLD}) {
    settings.mmap_threshold_adapts = true;
    EXPECT_EQ(mallopt(parameter, 1 << 20), 1);
    EXPECT_FALSE(settings.mmap_threshold_adapts);
  }
}

TEST_F(Mallopt, RefusesWhatMakesNoSense) {
  const size_t before = settings.mmap_threshold_bytes;
  EXPECT_EQ(mallopt(M_MMAP_THRESHOLD, -1), 0);
  EXPECT_EQ(settings.mmap_threshold_bytes, before);
  EXPECT_EQ(mallopt(M_TRIM_THRESHOLD, -2), 0);
  EXPECT_EQ(mallopt(M_ARENA_MAX, -1), 0);
}

TEST_F(Mallopt, AcceptsTheCheckActionThatQuarryTakes) {
  EXPECT_EQ(mallopt(M_CHECK_ACTION, 3), 1);
  EXPECT_EQ(mallopt(M_CHECK_ACTION, 7), 1);
  for (const int action : {0, 1, 2, 4, 5}) {
    EXPECT_EQ(mallopt(M_CHECK_ACTION, action), 0);
  }
}

TEST_F(Mallopt, RefusesTheRest) {
  for (const int parameter : {M_MXFAST, M_NLBLKS, M_GRAIN, M_KEEP, M_TOP_PAD,
                              M_MMAP_MAX, M_ARENA_TEST, 0, 99, -99}) {
    EXPECT_EQ(mallopt(parameter, 1), 0) << parameter;
  }
}

TEST_F(Mallopt, PerturbFillsFreshBlocks) {
  ASSERT_EQ(mallopt(M_PERTURB, 0x5a), 1);
  EXPECT_EQ(settings.perturb_byte, 0x5a);
  for (const size_t bytes : {size_t{10}, size_t{1000}, size_t{100000}}) {
    void* block = malloc(bytes);
    EXPECT_TRUE(AllBytesAre(block, bytes, 0xff ^ 0x5a)) << bytes;
    free(block);
    block = calloc(1, bytes);
    EXPECT_TRUE(AllBytesAre(block, bytes, 0)) << bytes;
    free(block);
  }
}

}  // namespace
}  // namespace quarry
