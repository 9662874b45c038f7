// Does memory go back when a program that has freed it does nothing more?
//
//   return [MIB]
//
// Allocates and touches MIB (default 1024) of blocks of 16 to 512 bytes, frees
// all in another order and sleeps. Prints the time of a malloc and its free,
// and what is resident when all is allocated, after the last free, and one and
// five seconds later: seconds without a single call of the allocator.

#include <cstdlib>

#include "tools/benchmarks/support.h"

int main(int argc, char** argv) {
  const size_t goal_bytes = bench::Argument(argc, argv, 1, 1024) << 20;
  constexpr uint32_t kMinBytes = 16;
  constexpr uint32_t kMaxBytes = 512;
  bench::Random random(1);
  bench::Table<char*> blocks(goal_bytes / ((kMinBytes + kMaxBytes) / 2) * 11 /
                             10);
  const double baseline = bench::ResidentBytes();

  double busy_ns = -bench::NowNs();
  size_t count = 0;
  for (size_t live_bytes = 0; live_bytes < goal_bytes;) {
    const uint32_t bytes = random.Between(kMinBytes, kMaxBytes);
    blocks[count++] = bench::NewBlock(bytes);
    live_bytes += bytes;
  }
  busy_ns += bench::NowNs();
  const double full = bench::ResidentBytes();
  random.Shuffle(blocks.begin(), count);
  busy_ns -= bench::NowNs();
  for (size_t i = 0; i < count; ++i) std::free(blocks[i]);
  busy_ns += bench::NowNs();

  const double freed = bench::ResidentBytes();
  bench::SleepMs(1000);
  const double after_1s = bench::ResidentBytes();
  bench::SleepMs(4000);
  const double after_5s = bench::ResidentBytes();
  bench::Print("time", busy_ns / static_cast<double>(count), "ns");
  bench::Print("full", (full - baseline) / bench::kMib, "MiB");
  bench::Print("freed", (freed - baseline) / bench::kMib, "MiB");
  bench::Print("after_1s", (after_1s - baseline) / bench::kMib, "MiB");
  bench::Print("after_5s", (after_5s - baseline) / bench::kMib, "MiB");
}
