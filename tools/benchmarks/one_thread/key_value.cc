// A key-value store: values of mixed size, replaced at random.
//
//   key_value [KEYS [UPDATES]]
//
// KEYS (default 1 M) values of 16 to 4096 bytes, small ones more often, and
// UPDATES (default 2 M) at random; one key in eight gets half of them. Prints
// the CPU time of an update.

#include <cstdlib>

#include "tools/benchmarks/support.h"

int main(int argc, char** argv) {
  const auto keys =
      static_cast<uint32_t>(bench::Argument(argc, argv, 1, 1'000'000));
  const size_t updates = bench::Argument(argc, argv, 2, 2'000'000);
  bench::Random random(1);
  bench::Table<uint16_t> sizes(1 << 16);
  for (uint16_t& bytes : sizes) {
    bytes = static_cast<uint16_t>(random.PowerLaw(16, 4096));
  }
  bench::Table<char*> values(keys);
  for (uint32_t key = 0; key < keys; ++key) {
    values[key] = bench::NewBlock(sizes[key % sizes.size()]);
  }

  const double start_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID);
  for (size_t i = 0; i < updates; ++i) {
    const uint32_t range = i % 2 == 0 ? keys : keys / 8 + 1;
    char*& value = values[random.Between(0, range - 1)];
    std::free(value);
    value = bench::NewBlock(sizes[random.Between(0, 0xffff)]);
  }
  const double cpu_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID) - start_ns;
  bench::Print("time", cpu_ns / static_cast<double>(updates), "ns");
}
