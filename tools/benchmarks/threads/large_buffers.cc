// A pipeline of large buffers: each stage allocates its output, fills it from
// its input and frees that.
//
//   large_buffers STAGES [BUFFERS]
//
// BUFFERS (default 6,000) of 16 KiB to 1 MiB go through STAGES threads; a stage
// makes more or less of what it reads. Prints the wall time per buffer and
// stage.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "tools/benchmarks/ring.h"
#include "tools/benchmarks/support.h"

namespace {

constexpr uint32_t kMinBytes = 16 << 10;
constexpr uint32_t kMaxBytes = 1 << 20;

struct Buffer {
  char* data;
  size_t bytes;
};

using Queue = bench::Ring<Buffer>;

Buffer Convert(Buffer input, size_t bytes) {
  Buffer output = {bench::NewBlock(bytes), bytes};
  const size_t common = std::min(input.bytes, bytes);
  if (common > 0) std::memcpy(output.data, input.data, common);
  std::memset(output.data + common, 1, bytes - common);
  std::free(input.data);
  return output;
}

void Stage(Queue& from, Queue* to, size_t buffers, uint64_t seed) {
  bench::Random random(seed);
  for (size_t i = 0; i < buffers; ++i) {
    const Buffer input = from.Pop();
    if (to != nullptr) {
      to->Push(Convert(input, random.PowerLaw(kMinBytes, kMaxBytes)));
    } else {
      std::free(input.data);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t stages = bench::Argument(argc, argv, 1, 2);
  const size_t buffers = bench::Argument(argc, argv, 2, 6'000) / stages;
  std::deque<Queue> queues;
  for (size_t i = 0; i < stages; ++i) queues.emplace_back(8);

  const double start_ns = bench::NowNs();
  std::vector<std::thread> threads;
  for (size_t i = 0; i < stages; ++i) {
    Queue* to = i + 1 < stages ? &queues[i + 1] : nullptr;
    threads.emplace_back(Stage, std::ref(queues[i]), to, buffers, i + 1);
  }
  bench::Random random(100);
  for (size_t i = 0; i < buffers; ++i) {
    const size_t bytes = random.PowerLaw(kMinBytes, kMaxBytes);
    queues[0].Push(Convert({nullptr, 0}, bytes));
  }
  for (std::thread& thread : threads) thread.join();
  const double wall_ns = bench::NowNs() - start_ns;
  bench::Print("time", wall_ns / static_cast<double>(buffers * stages), "ns");
}
