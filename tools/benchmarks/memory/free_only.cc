// Threads that only allocate and one thread that only frees: does what it frees
// find its way back to the others?
//
//   free_only [PRODUCERS [BLOCKS [LIVE_MIB]]]
//
// PRODUCERS (default 16) threads allocate BLOCKS (default 4 M) blocks of 592
// bytes in all, never more than LIVE_MIB (default 370) at once. Prints the wall
// time per block and how the peak resident set relates to the peak of live
// bytes.

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <thread>
#include <vector>

#include "tools/benchmarks/ring.h"
#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kBlockBytes = 592;
// That the consumer takes from one producer before it looks at the next.
constexpr size_t kAtATime = 256;

using Blocks = bench::Ring<char*>;

void Produce(Blocks& ring, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    char* block = bench::NewBlock(kBlockBytes);
    bench::Touch(block, kBlockBytes, 64);
    ring.Push(block);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t producers = bench::Argument(argc, argv, 1, 16);
  const size_t count = bench::Argument(argc, argv, 2, 4'000'000) / producers;
  const size_t live_mib = bench::Argument(argc, argv, 3, 370);
  const size_t capacity = (live_mib << 20) / kBlockBytes / producers;
  std::deque<Blocks> rings;
  for (size_t i = 0; i < producers; ++i) rings.emplace_back(capacity);
  std::vector<std::thread> threads;
  threads.reserve(producers);

  const double baseline = bench::ResidentBytes();
  const double start_ns = bench::NowNs();
  for (Blocks& ring : rings) {
    threads.emplace_back([&ring, count] { Produce(ring, count); });
  }
  size_t peak_live = 0;
  for (size_t freed = 0; freed < count * producers;) {
    size_t live = 0;
    for (Blocks& ring : rings) {
      live += ring.Count();
      char* block;
      for (size_t i = 0; i < kAtATime && ring.TryPop(block); ++i) {
        std::free(block);
        ++freed;
      }
    }
    peak_live = std::max(peak_live, live);
    if (live == 0) sched_yield();
  }
  for (std::thread& thread : threads) thread.join();
  const double wall_ns = bench::NowNs() - start_ns;
  const double peak = bench::PeakResidentBytes() - baseline;
  bench::Print("time", wall_ns / static_cast<double>(count * producers), "ns");
  bench::Print("peak_per_live",
               peak / static_cast<double>(peak_live * kBlockBytes), "x");
}
