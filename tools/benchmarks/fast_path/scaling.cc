// The calls that tools/scaling counts, with any number of threads.
//
//   scaling local|remote THREADS [BATCHES]
//
// Each thread makes BATCHES batches of blocks of 16 to 512 bytes. `local`: and
// frees them itself. `remote`: and the next thread frees them, so that every free
// is of another thread's block. All wait for each other between a batch's
// allocation and its frees, so that what they count does not depend on who is
// first. The blocks are left to the end by a second batch of the same kind: all
// of it is steady state, but for the first batches.

#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kBatch = 500;

struct Shared {
  explicit Shared(size_t threads) : blocks(threads * kBatch) {
    pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(threads));
  }
  pthread_barrier_t barrier;
  bench::Table<char*> blocks;  // kBatch of each thread.
};

void Live(Shared& shared, size_t threads, size_t thread, bool is_remote,
          size_t batches) {
  bench::Random random(thread + 1);
  char** const mine = &shared.blocks[thread * kBatch];
  char** const freed =
      is_remote ? &shared.blocks[(thread + 1) % threads * kBatch] : mine;
  for (size_t batch = 0; batch < batches; ++batch) {
    for (size_t i = 0; i < kBatch; ++i) {
      mine[i] = bench::NewBlock(random.Between(16, 512));
    }
    pthread_barrier_wait(&shared.barrier);
    for (size_t i = 0; i < kBatch; ++i) std::free(freed[i]);
    pthread_barrier_wait(&shared.barrier);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || (std::strcmp(argv[1], "local") != 0 &&
                   std::strcmp(argv[1], "remote") != 0)) {
    bench::FailUsage(argv[0], "local|remote THREADS [BATCHES]");
  }
  const bool is_remote = std::strcmp(argv[1], "remote") == 0;
  const size_t count = bench::Argument(argc, argv, 2, 1);
  const size_t batches = bench::Argument(argc, argv, 3, 20);
  Shared shared(count);
  std::vector<std::thread> threads;
  threads.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    threads.emplace_back(
        [&, i] { Live(shared, count, i, is_remote, batches); });
  }
  for (std::thread& thread : threads) thread.join();
}
