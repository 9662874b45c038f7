// Threads that only allocate and one thread that only frees: does what it frees
// find its way back to the others?
//
//   free_only [PRODUCERS [BLOCKS [LIVE_MIB]]]
//
// PRODUCERS (default 16) threads allocate BLOCKS (default 4 M) blocks of 592
// bytes in all, never more than LIVE_MIB (default 370) at once. Prints the wall
// time per block and how the peak resident set relates to the peak of live
// bytes.

#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kBlockBytes = 592;

// A bounded queue of blocks with one producer; all have the same consumer.
struct Ring {
  explicit Ring(size_t entries) : blocks(entries) {}

  bench::Table<char*> blocks;
  // The releasing store to each pairs with the other side's acquiring load.
  alignas(64) std::atomic<size_t> pushed = 0;
  alignas(64) std::atomic<size_t> popped = 0;
};

void Produce(Ring& ring, size_t count) {
  const size_t capacity = ring.blocks.size();
  for (size_t i = 0; i < count; ++i) {
    bench::WaitUntil([&] {
      return i - ring.popped.load(std::memory_order_acquire) < capacity;
    });
    ring.blocks[i % capacity] = bench::NewBlock(kBlockBytes);
    bench::Touch(ring.blocks[i % capacity], kBlockBytes, 64);
    ring.pushed.store(i + 1, std::memory_order_release);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t producers = bench::Argument(argc, argv, 1, 16);
  const size_t count = bench::Argument(argc, argv, 2, 4'000'000) / producers;
  const size_t live_mib = bench::Argument(argc, argv, 3, 370);
  const size_t capacity = (live_mib << 20) / kBlockBytes / producers;
  // Not in a vector: Ring has atomics, which do not move.
  auto* rings = static_cast<Ring*>(std::malloc(producers * sizeof(Ring)));
  for (size_t i = 0; i < producers; ++i) new (&rings[i]) Ring(capacity);
  std::vector<std::thread> threads;
  threads.reserve(producers);

  const double baseline = bench::ResidentBytes();
  const double start_ns = bench::NowNs();
  for (size_t i = 0; i < producers; ++i) {
    threads.emplace_back([&ring = rings[i], count] { Produce(ring, count); });
  }
  size_t peak_live = 0;
  for (size_t freed = 0; freed < count * producers;) {
    size_t live = 0;
    for (size_t i = 0; i < producers; ++i) {
      Ring& ring = rings[i];
      const size_t pushed = ring.pushed.load(std::memory_order_acquire);
      const size_t first = ring.popped.load(std::memory_order_relaxed);
      live += pushed - first;
      // A few at a time, to come round to every producer often.
      const size_t last = std::min(pushed, first + 256);
      for (size_t k = first; k < last; ++k) std::free(ring.blocks[k % capacity]);
      ring.popped.store(last, std::memory_order_release);
      freed += last - first;
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
