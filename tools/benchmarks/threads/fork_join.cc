// A program that computes in steps: each starts threads that build data of their
// own, and waits for all of them.
//
//   fork_join THREADS [STEPS]
//
// A thread allocates up to 24,000 blocks of 16 to 4096 bytes, small ones more
// often, and frees one at random for every second that it allocates, then the
// rest; the last thread does all of that, the others from half of it on. One block
// in a hundred is a result, which lies in a table of 1000 until another takes its
// place, in this step or in a later one. STEPS (default 40), one after the other.
// Prints the wall time per block.

#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kMostBlocks = 24'000;
constexpr uint32_t kResults = 1000;

std::atomic<char*> results[kResults];

void Compute(char** blocks, size_t count, uint64_t seed) {
  bench::Random random(seed);
  size_t live = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bytes = random.PowerLaw(16, 4096);
    char* const block = bench::NewBlock(bytes);
    bench::Touch(block, bytes);
    if (i % 100 == 0) {
      std::atomic<char*>& result = results[random.Between(0, kResults - 1)];
      std::free(result.exchange(block));
      continue;
    }
    blocks[live++] = block;
    if (i % 2 == 0) {
      char*& victim = blocks[random.Between(0, static_cast<uint32_t>(live - 1))];
      std::free(victim);
      victim = blocks[--live];
    }
  }
  while (live != 0) std::free(blocks[--live]);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t threads = bench::Argument(argc, argv, 1, 2);
  const size_t steps = bench::Argument(argc, argv, 2, 40);
  bench::Table<char*> blocks(threads * kMostBlocks);

  size_t allocated = 0;
  const double start_ns = bench::NowNs();
  for (size_t step = 0; step < steps; ++step) {
    std::vector<std::thread> started;
    for (size_t i = 0; i < threads; ++i) {
      const size_t count = kMostBlocks * (threads + i + 1) / (2 * threads);
      started.emplace_back(Compute, &blocks[i * kMostBlocks], count,
                           step * threads + i);
      allocated += count;
    }
    for (std::thread& thread : started) thread.join();
  }
  const double wall_ns = bench::NowNs() - start_ns;
  bench::Print("time", wall_ns / static_cast<double>(allocated), "ns");
}
