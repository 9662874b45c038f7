// Large blocks that one thread allocates and another frees, for a long time:
// does the resident set keep growing?
//
//   large_remote [COUNT [IN_FLIGHT]]
//
// COUNT (default 1 M) blocks of 100 KiB to 8 MiB, small ones more often, at
// most IN_FLIGHT (default 16) at once, one byte of each 64 KiB written. Prints
// the wall time per block and what is resident after a tenth and at the end.

#include <cstdlib>
#include <thread>

#include "tools/benchmarks/ring.h"
#include "tools/benchmarks/support.h"

int main(int argc, char** argv) {
  const size_t count = bench::Argument(argc, argv, 1, 1'000'000);
  const size_t in_flight = bench::Argument(argc, argv, 2, 16);
  bench::Ring<char*> ring(in_flight);
  const double baseline = bench::ResidentBytes();
  double resident_early = 0;

  const double start_ns = bench::NowNs();
  std::thread consumer([&ring, count] {
    for (size_t i = 0; i < count; ++i) std::free(ring.Pop());
  });
  bench::Random random(1);
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bytes = random.PowerLaw(100 << 10, 8 << 20);
    char* block = bench::NewBlock(bytes);
    bench::Touch(block, bytes, 64 << 10);
    ring.Push(block);
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
