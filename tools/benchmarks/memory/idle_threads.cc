// Many threads that hold memory, and then nothing happens any more.
//
//   idle_threads keep|half [THREADS [KB]]
//
// Each of THREADS (default 400) threads allocates and touches KB (default 2500)
// thousand bytes in blocks of 16 to 1024, and with `half` frees half of them,
// picked at random. Prints the wall time per block, and two seconds later what
// is resident in relation to the bytes that are live.

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

constexpr uint32_t kMinBytes = 16;
constexpr uint32_t kMaxBytes = 1024;

struct Shared {
  bool free_half;
  size_t bytes_per_thread;
  pthread_barrier_t barrier;
  std::atomic<size_t> live_bytes = 0;
  std::atomic<size_t> blocks = 0;
};

void Fill(Shared& shared, uint64_t seed) {
  bench::Table<char*> blocks(shared.bytes_per_thread / kMinBytes / 8);
  bench::Random random(seed);
  // The first lets the baseline be taken, with every thread and its table in
  // place; the second starts the clock.
  pthread_barrier_wait(&shared.barrier);
  pthread_barrier_wait(&shared.barrier);

  size_t live = 0;
  size_t count = 0;
  while (live < shared.bytes_per_thread && count < blocks.size()) {
    const uint32_t bytes = random.Between(kMinBytes, kMaxBytes);
    blocks[count++] = bench::NewBlock(bytes);
    live += bytes;
  }
  if (shared.free_half) {
    // The same sizes again, from the same seed.
    bench::Random sizes(seed);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t bytes = sizes.Between(kMinBytes, kMaxBytes);
      if (random.Between(0, 1) == 0) continue;
      std::free(blocks[i]);
      live -= bytes;
    }
  }
  shared.live_bytes.fetch_add(live, std::memory_order_relaxed);
  shared.blocks.fetch_add(count, std::memory_order_relaxed);
  // All is allocated; and main has measured.
  pthread_barrier_wait(&shared.barrier);
  pthread_barrier_wait(&shared.barrier);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || (std::strcmp(argv[1], "keep") != 0 &&
                   std::strcmp(argv[1], "half") != 0)) {
    bench::FailUsage(argv[0], "keep|half [THREADS [KB]]");
  }
  Shared shared;
  shared.free_half = std::strcmp(argv[1], "half") == 0;
  const size_t count = bench::Argument(argc, argv, 2, 400);
  shared.bytes_per_thread = bench::Argument(argc, argv, 3, 2500) * 1000;
  pthread_barrier_init(&shared.barrier, nullptr,
                       static_cast<unsigned>(count + 1));
  std::vector<std::thread> threads;
  threads.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    threads.emplace_back([&shared, i] { Fill(shared, i + 1); });
  }

  pthread_barrier_wait(&shared.barrier);
  const double baseline = bench::ResidentBytes();
  const double start_ns = bench::NowNs();
  pthread_barrier_wait(&shared.barrier);
  pthread_barrier_wait(&shared.barrier);
  const double wall_ns = bench::NowNs() - start_ns;
  bench::SleepMs(2000);
  const double resident = bench::ResidentBytes() - baseline;
  pthread_barrier_wait(&shared.barrier);
  for (std::thread& thread : threads) thread.join();
  bench::Print("time", wall_ns / static_cast<double>(shared.blocks), "ns");
  bench::Print("resident_per_live",
               resident / static_cast<double>(shared.live_bytes), "x");
}
