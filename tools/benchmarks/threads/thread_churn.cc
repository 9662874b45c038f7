// Threads that live for a moment: what does it cost to begin and to end?
//
//   thread_churn AT_ONCE [THREADS]
//
// Rounds of AT_ONCE threads, THREADS (default 8,000) in all. Each allocates
// 100 blocks of 16 to 1024 bytes, frees half of them and what it finds of the
// thread that had its place before, and leaves the rest. Prints the wall time
// of a thread.

#include <cstdlib>
#include <thread>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kBlocks = 100;
constexpr size_t kLeft = kBlocks / 2;

void Live(char** left, uint64_t seed) {
  bench::Random random(seed);
  char* blocks[kBlocks];
  for (char*& block : blocks) {
    block = bench::NewBlock(random.Between(16, 1024));
  }
  for (size_t i = 0; i < kLeft; ++i) {
    std::free(left[i]);
    left[i] = blocks[2 * i];
    std::free(blocks[2 * i + 1]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t at_once = bench::Argument(argc, argv, 1, 2);
  const size_t rounds = bench::Argument(argc, argv, 2, 8'000) / at_once;
  bench::Table<char*> left(at_once * kLeft);

  const double start_ns = bench::NowNs();
  std::vector<std::thread> threads;
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < at_once; ++i) {
      threads.emplace_back(Live, &left[i * kLeft], round * at_once + i);
    }
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
  const double wall_ns = bench::NowNs() - start_ns;
  bench::Print("time", wall_ns / static_cast<double>(rounds * at_once), "ns");
}
