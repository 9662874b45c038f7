// A server's threads: each replaces objects at random in a set that it was
// handed, then hands the set to a new thread and ends.
//
//   server THREADS [REPLACEMENTS]
//
// Sets of 1000 objects of 8 to 500 bytes; a thread lives for 50,000
// replacements. The objects of a new thread come from one that is gone.
// REPLACEMENTS (default 24 M) in all. Prints the wall time of one.
// Source: the benchmark of Larson and Krishnan 1998.

#include <cstdlib>
#include <thread>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

constexpr uint32_t kObjects = 1000;
constexpr uint32_t kMinBytes = 8;
constexpr uint32_t kMaxBytes = 500;
constexpr size_t kLifeReplacements = 50'000;

void Live(char** objects, uint64_t seed) {
  bench::Random random(seed);
  for (size_t i = 0; i < kLifeReplacements; ++i) {
    char*& object = objects[random.Between(0, kObjects - 1)];
    std::free(object);
    object = bench::NewBlock(random.Between(kMinBytes, kMaxBytes));
  }
}

// A line of threads, each started by the end of the one before it.
void Serve(char** objects, size_t lives, uint64_t seed) {
  for (size_t life = 0; life < lives; ++life) {
    std::thread(Live, objects, seed + life).join();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t threads = bench::Argument(argc, argv, 1, 2);
  const size_t replacements = bench::Argument(argc, argv, 2, 24'000'000);
  const size_t lives = replacements / threads / kLifeReplacements + 1;
  bench::Table<char*> objects(threads * kObjects);
  bench::Random random(1);
  for (char*& object : objects) {
    object = bench::NewBlock(random.Between(kMinBytes, kMaxBytes));
  }

  const double start_ns = bench::NowNs();
  std::vector<std::thread> lines;
  for (size_t i = 0; i < threads; ++i) {
    lines.emplace_back(Serve, &objects[i * kObjects], lives, i << 32);
  }
  for (std::thread& line : lines) line.join();
  const double wall_ns = bench::NowNs() - start_ns;
  bench::Print(
      "time",
      wall_ns / static_cast<double>(threads * lives * kLifeReplacements), "ns");
}
