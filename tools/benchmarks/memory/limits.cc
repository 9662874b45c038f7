// A process whose address space is limited: NULL when it is used up, and good
// for work again after the blocks have been freed.
//
//   limits [MIB]
//
// Runs itself again under RLIMIT_AS of MIB (default 256), allocates blocks of
// 1 KiB to 64 KiB until malloc fails, frees all, and allocates half as much
// again. Prints how much of the limit could not be had, and fails when
// there was no NULL or the second half was not to be had.

#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>

#include "tools/benchmarks/support.h"

namespace {

constexpr char kLimited[] = "QUARRY_BENCHMARK_LIMITED";
constexpr size_t kMaxBlocks = size_t{1} << 20;

// Allocates until malloc fails or `goal_bytes` are had; returns how many
// blocks there are, and in `bytes` how large they are in all.
size_t Allocate(char** blocks, size_t goal_bytes, size_t& bytes) {
  bench::Random random(1);
  bytes = 0;
  for (size_t count = 0; count < kMaxBlocks; ++count) {
    if (bytes >= goal_bytes) return count;
    const size_t size = random.Between(1 << 10, 64 << 10);
    blocks[count] = static_cast<char*>(std::malloc(size));
    if (blocks[count] == nullptr) return count;
    bench::Touch(blocks[count], size);
    bytes += size;
  }
  return kMaxBlocks;
}

int Fail(const char* complaint) {
  std::fprintf(stderr, "limits: %s\n", complaint);
  return 1;
}

int UseUp(size_t limit_bytes) {
  bench::Table<char*> blocks(kMaxBlocks);
  size_t bytes;
  size_t count = Allocate(blocks.begin(), 2 * limit_bytes, bytes);
  const size_t had_bytes = bytes;
  if (had_bytes >= limit_bytes) return Fail("no NULL at the limit");
  for (size_t i = 0; i < count; ++i) std::free(blocks[i]);
  count = Allocate(blocks.begin(), had_bytes / 2, bytes);
  if (bytes < had_bytes / 2) return Fail("freed memory is not to be had again");
  for (size_t i = 0; i < count; ++i) std::free(blocks[i]);
  bench::Print("not_had",
               static_cast<double>(limit_bytes - had_bytes) / bench::kMib,
               "MiB");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t limit_bytes = bench::Argument(argc, argv, 1, 256) << 20;
  if (std::getenv(kLimited) != nullptr) return UseUp(limit_bytes);
  // Before the allocator's first steps, hence a new program.
  const rlimit limit = {limit_bytes, limit_bytes};
  if (setrlimit(RLIMIT_AS, &limit) != 0) return Fail("setrlimit failed");
  setenv(kLimited, "1", 1);
  execv("/proc/self/exe", argv);
  return Fail("cannot run itself again");
}
