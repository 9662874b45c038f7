// A server that forks for each request: what the child writes of the parent's
// heap, the kernel copies.
//
//   fork_server [REQUESTS]
//
// The parent has 64 MiB in blocks of 16 to 1024 bytes. For each of REQUESTS
// (default 40) a child replaces 10,000 of them at random, and ends. Prints the
// wall time of a request and what it copied or found new, by its page faults.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "tools/benchmarks/support.h"

namespace {

constexpr uint32_t kMaxBytes = 1024;

char* New(bench::Random& random) {
  return bench::NewBlock(random.Between(16, kMaxBytes));
}

void Answer(const bench::Table<char*>& blocks, uint64_t seed) {
  bench::Random random(seed);
  const auto last = static_cast<uint32_t>(blocks.size() - 1);
  for (int i = 0; i < 10'000; ++i) {
    char*& block = blocks[random.Between(0, last)];
    std::free(block);
    block = New(random);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t requests = bench::Argument(argc, argv, 1, 40);
  bench::Table<char*> blocks((64 << 20) / (kMaxBytes / 2));
  bench::Random random(1);
  for (char*& block : blocks) block = New(random);

  const double start_ns = bench::NowNs();
  for (size_t request = 0; request < requests; ++request) {
    const pid_t child = fork();
    if (child == 0) {
      Answer(blocks, request);
      _exit(0);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
      std::fprintf(stderr, "fork_server: a child failed\n");
      return 1;
    }
  }
  const double wall_ns = bench::NowNs() - start_ns;
  rusage children;
  getrusage(RUSAGE_CHILDREN, &children);
  bench::Print("time", wall_ns / static_cast<double>(requests), "ns");
  bench::Print("copied",
               static_cast<double>(children.ru_minflt) * bench::kPageBytes /
                   bench::kMib / static_cast<double>(requests),
               "MiB");
}
