// Blocks too large for any cache, in turn or growing.
//
//   huge calloc_1g|alternate_800k [COUNT]
//   huge realloc_double|realloc_1_2 ends|all [COUNT]
//
// calloc_1g       calloc(1 GB) and free, 1000 times
// alternate_800k  malloc(800 kB), a write to its first byte and free, 1 M times
//                 (COUNT of 10000 turns of 100)
// realloc_double  grows a block from 8 bytes to 1 GiB by doubling
// realloc_1_2     the same in steps of 1.2
//
// `ends` writes the first and the last byte of every new size, `all` every byte
// that is new. COUNT overrides how often; without it, whatever takes longer
// than two seconds is cut short. Prints the time of a pair, or of one realloc.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kLimitBytes = size_t{1} << 30;
constexpr double kUsualNs = 2e9;
constexpr double kForever = 1e300;

[[noreturn]] void OutOfMemory() {
  std::fprintf(stderr, "huge: out of memory\n");
  std::exit(1);
}

// Prints the time of one operation. A turn, which returns how many it did, is
// taken `count` times, or as often as the budget allows.
template <typename Turn>
void Repeat(size_t count, double budget_ns, Turn turn) {
  const double start_ns = bench::NowNs();
  double operations = 0;
  double elapsed_ns = 0;
  for (size_t i = 0; i < count && elapsed_ns < budget_ns; ++i) {
    operations += turn();
    elapsed_ns = bench::NowNs() - start_ns;
  }
  bench::Print("time", elapsed_ns / operations, "ns");
}

double CallocAndFree() {
  void* block = std::calloc(1, 1'000'000'000);
  if (block == nullptr) OutOfMemory();
  bench::Escape(block);
  std::free(block);
  return 1;
}

// Many in a turn, or reading the clock would be part of the time.
double MallocAndFree() {
  constexpr int kPairs = 100;
  for (int i = 0; i < kPairs; ++i) {
    char* block = static_cast<char*>(std::malloc(800'000));
    if (block == nullptr) OutOfMemory();
    block[0] = 1;
    bench::Escape(block);
    std::free(block);
  }
  return kPairs;
}

double Grow(double factor, bool write_all) {
  size_t bytes = 8;
  char* block = bench::NewBlock(bytes);
  double reallocs = 0;
  while (bytes < kLimitBytes) {
    const size_t old_bytes = bytes;
    bytes = std::max(old_bytes + 1,
                     static_cast<size_t>(static_cast<double>(bytes) * factor));
    bytes = std::min(bytes, kLimitBytes);
    block = static_cast<char*>(std::realloc(block, bytes));
    if (block == nullptr) OutOfMemory();
    if (write_all) {
      std::memset(block + old_bytes, 1, bytes - old_bytes);
    } else {
      block[0] = 1;
      block[bytes - 1] = 2;
    }
    bench::Escape(block);
    ++reallocs;
  }
  std::free(block);
  return reallocs;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr char kUsage[] =
      "calloc_1g|alternate_800k [COUNT]\n"
      "       huge realloc_double|realloc_1_2 ends|all [COUNT]";
  const char* name = argc < 2 ? "" : argv[1];
  if (std::strcmp(name, "calloc_1g") == 0) {
    Repeat(bench::Argument(argc, argv, 2, 1000), argc > 2 ? kForever : kUsualNs,
           CallocAndFree);
    return 0;
  }
  if (std::strcmp(name, "alternate_800k") == 0) {
    Repeat(bench::Argument(argc, argv, 2, 10'000),
           argc > 2 ? kForever : kUsualNs, MallocAndFree);
    return 0;
  }
  const bool doubles = std::strcmp(name, "realloc_double") == 0;
  const char* written = argc < 3 ? "" : argv[2];
  const bool all = std::strcmp(written, "all") == 0;
  if ((!doubles && std::strcmp(name, "realloc_1_2") != 0) ||
      (!all && std::strcmp(written, "ends") != 0)) {
    bench::FailUsage(argv[0], kUsage);
  }
  Repeat(bench::Argument(argc, argv, 3, all ? 2 : 1000),
         argc > 3 ? kForever : kUsualNs,
         [=] { return Grow(doubles ? 2 : 1.2, all); });
}
