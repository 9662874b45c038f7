// Large blocks that one thread allocates and another frees, for a long time:
// does the resident set keep growing?
//
//   large_remote [COUNT [IN_FLIGHT]]
//
// COUNT (default 1 M) blocks of 100 KiB to 8 MiB, small ones more often, at
// most IN_FLIGHT (default 16) at once, one byte of each 64 KiB written. Prints
// the wall time per block and what is resident after a tenth and at the end.

#include <atomic>
#include <cstdlib>
#include <thread>

#include "tools/benchmarks/support.h"

int main(int argc, char** argv) {
  const size_t count = bench::Argument(argc, argv, 1, 1'000'000);
  const size_t in_flight = bench::Argument(argc, argv, 2, 16);
  bench::Table<char*> ring(in_flight);
  // The releasing store to each pairs with the other thread's acquiring load.
  alignas(64) std::atomic<size_t> pushed = 0;
  alignas(64) std::atomic<size_t> popped = 0;
  const double baseline = bench::ResidentBytes();
  double resident_early = 0;

  const double start_ns = bench::NowNs();
  std::thread consumer([&] {
    for (size_t i = 0; i < count; ++i) {
      bench::WaitUntil(
          [&] { return pushed.load(std::memory_order_acquire) > i; });
      std::free(ring[i % in_flight]);
      popped.store(i + 1, std::memory_order_release);
    }
  });
  bench::Random random(1);
  for (size_t i = 0; i < count; ++i) {
    bench::WaitUntil([&] {
      return i - popped.load(std::memory_order_acquire) < in_flight;
    });
    const uint32_t bytes = random.PowerLaw(100 << 10, 8 << 20);
    char* block = bench::NewBlock(bytes);
    bench::Touch(block, bytes, 64 << 10);
    ring[i % in_flight] = block;
    pushed.store(i + 1, std::memory_order_release);
    if (i == count / 10) resident_early = bench::ResidentBytes();
  }
  consumer.join();
  const double wall_ns = bench::NowNs() - start_ns;
  const double resident = bench::ResidentBytes();
  bench::Print("time", wall_ns / static_cast<double>(count), "ns");
  bench::Print("at_10_percent", (resident_early - baseline) / bench::kMib,
               "MiB");
  bench::Print("at_100_percent", (resident - baseline) / bench::kMib, "MiB");
}
