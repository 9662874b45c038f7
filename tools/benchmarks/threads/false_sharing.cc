// Do blocks of different threads lie in one cache line?
//
//   false_sharing active|passive THREADS [BLOCKS]
//
// Each thread allocates a block of 8 bytes, writes it 100 times and frees it,
// again and again, BLOCKS (default 4 M) times in all. `active`: the
// allocator alone decides where they lie. `passive`: each thread first frees a
// block that another thread allocated beside those for the rest; an allocator
// that reuses it at once puts the threads into one line. Prints the wall time
// of a write.
// Source: the two tests of Berger et al. 2000.

#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kBytes = 8;
constexpr size_t kWrites = 100;

void Work(char* given, size_t blocks) {
  std::free(given);
  for (size_t i = 0; i < blocks; ++i) {
    char* block = bench::NewBlock(kBytes);
    for (size_t k = 0; k < kWrites; ++k) {
      block[k % kBytes] = static_cast<char>(k);
      // A write to memory each time.
      bench::Escape(block);
    }
    std::free(block);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || (std::strcmp(argv[1], "active") != 0 &&
                   std::strcmp(argv[1], "passive") != 0)) {
    bench::FailUsage(argv[0], "active|passive THREADS [BLOCKS]");
  }
  const bool passive = std::strcmp(argv[1], "passive") == 0;
  const size_t threads = bench::Argument(argc, argv, 2, 2);
  const size_t blocks = bench::Argument(argc, argv, 3, 4'000'000) / threads;
  std::vector<char*> given(threads, nullptr);
  if (passive) {
    for (char*& block : given) block = bench::NewBlock(kBytes);
  }

  const double start_ns = bench::NowNs();
  std::vector<std::thread> workers;
  for (char* block : given) workers.emplace_back(Work, block, blocks);
  for (std::thread& worker : workers) worker.join();
  const double wall_ns = bench::NowNs() - start_ns;
  bench::Print("time",
               wall_ns / static_cast<double>(threads * blocks * kWrites), "ns");
}
