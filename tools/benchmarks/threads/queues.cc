// Producers allocate messages, consumers read and free them.
//
//   queues PRODUCERS CONSUMERS [MESSAGES]
//
// Each pair has a queue of 256 messages of 16 to 2048 bytes, small ones more
// often. MESSAGES (default 2 M) in all. Prints the wall time of one.

#include <cstdlib>
#include <deque>
#include <thread>
#include <vector>

#include "tools/benchmarks/ring.h"
#include "tools/benchmarks/support.h"

namespace {

constexpr size_t kQueueMessages = 256;

using Queue = bench::Ring<char*>;

void Produce(std::vector<Queue*> consumers, size_t rounds, uint64_t seed) {
  // Drawn before, for a power law is dearer than a malloc.
  bench::Table<uint16_t> sizes(1 << 12);
  bench::Random random(seed);
  for (uint16_t& bytes : sizes) {
    bytes = static_cast<uint16_t>(random.PowerLaw(16, 2048));
  }
  size_t next = 0;
  for (size_t i = 0; i < rounds; ++i) {
    for (Queue* queue : consumers) {
      queue->Push(bench::NewBlock(sizes[next++ % sizes.size()]));
    }
  }
}

void Consume(std::vector<Queue*> producers, size_t messages) {
  while (messages > 0) {
    bool idle = true;
    for (Queue* queue : producers) {
      char* message;
      while (queue->TryPop(message)) {
        if (message[0] != 1) std::abort();
        std::free(message);
        --messages;
        idle = false;
      }
    }
    if (idle) sched_yield();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const size_t producers = bench::Argument(argc, argv, 1, 1);
  const size_t consumers = bench::Argument(argc, argv, 2, 1);
  const size_t messages = bench::Argument(argc, argv, 3, 2'000'000);
  const size_t per_queue = messages / producers / consumers;
  std::deque<Queue> queues;
  std::vector<std::vector<Queue*>> of_producer(producers);
  std::vector<std::vector<Queue*>> of_consumer(consumers);
  for (size_t from = 0; from < producers; ++from) {
    for (size_t to = 0; to < consumers; ++to) {
      Queue* queue = &queues.emplace_back(kQueueMessages);
      of_producer[from].push_back(queue);
      of_consumer[to].push_back(queue);
    }
  }

  const double start_ns = bench::NowNs();
  std::vector<std::thread> threads;
  for (size_t i = 0; i < consumers; ++i) {
    threads.emplace_back(Consume, of_consumer[i], per_queue * producers);
  }
  for (size_t i = 0; i < producers; ++i) {
    threads.emplace_back(Produce, of_producer[i], per_queue, i + 1);
  }
  for (std::thread& thread : threads) thread.join();
  const double wall_ns = bench::NowNs() - start_ns;
  bench::Print("time",
               wall_ns / static_cast<double>(per_queue * producers * consumers),
               "ns");
}
