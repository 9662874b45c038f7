// Allocation patterns that use nothing but malloc and free, for timing whichever
// allocator is preloaded.
//
//   patterns --list           names every pattern and says what it does
//   patterns NAME...          runs these, or all, printing `NAME NS ns` for each
//   patterns --repetitions=N  timed repetitions of a pattern, of which the fastest
//                             counts (default 7)
//   patterns --clock=CLOCK    cpu or wall, instead of the pattern's own clock
//
// NS is nanoseconds for one malloc, a write to the block and one free; in
// two_threads_churn, where two threads work side by side, the time in which each
// of them does one. Sizes, orders and programs are drawn from a fixed seed before
// the clock starts and lie in mappings of their own, so that the allocator under
// test serves the pattern's blocks and little else.
//
// Patterns of one thread are timed by the CPU time of the process, which other
// programs on a busy machine lengthen far less than wall time; patterns of two
// threads by wall time, because waiting for each other is part of their cost.

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <thread>
#include <utility>

#include "tools/benchmarks/support.h"

namespace {

using bench::NewBlock;
using bench::NowNs;
using bench::Random;
using bench::Table;
using bench::WaitUntil;

struct Timing {
  int repetitions;
  clockid_t clock;
};

template <typename Body>
double FastestNsPerPair(const Timing& timing, size_t pairs, Body body) {
  double fastest_ns = 1e300;
  for (int i = 0; i < timing.repetitions; ++i) {
    const double start_ns = NowNs(timing.clock);
    body();
    fastest_ns = std::min(fastest_ns, NowNs(timing.clock) - start_ns);
  }
  return fastest_ns / static_cast<double>(pairs);
}

double PairOfOneSize(const Timing& timing) {
  constexpr size_t kPairs = 4'000'000;
  return FastestNsPerPair(timing, kPairs, [] {
    for (size_t i = 0; i < kPairs; ++i) std::free(NewBlock(16));
  });
}

double PairOfRandomSizes(const Timing& timing) {
  constexpr size_t kPairs = 4'000'000;
  // Too many for a branch predictor to learn by heart.
  Table<uint8_t> sizes(size_t{1} << 16);
  Random random(1);
  for (uint8_t& size : sizes) size = static_cast<uint8_t>(random.Between(1, 255));
  return FastestNsPerPair(timing, kPairs, [&sizes] {
    for (size_t i = 0; i < kPairs; ++i) std::free(NewBlock(sizes[i % (size_t{1} << 16)]));
  });
}

double BatchesOf100(const Timing& timing) {
  constexpr size_t kBatch = 100;
  constexpr size_t kBatches = 40'000;
  Table<char*> blocks(kBatch);
  return FastestNsPerPair(timing, kBatch * kBatches, [&blocks] {
    for (size_t batch = 0; batch < kBatches; ++batch) {
      for (char*& block : blocks) block = NewBlock(32);
      for (char* block : blocks) std::free(block);
    }
  });
}

double BatchOfAMillion(const Timing& timing, bool shuffled) {
  constexpr uint32_t kBlocks = 1'000'000;
  Table<char*> blocks(kBlocks);
  Table<uint32_t> order(kBlocks);
  for (uint32_t i = 0; i < kBlocks; ++i) order[i] = i;
  if (shuffled) {
    Random random(2);
    random.Shuffle(order.begin(), kBlocks);
  }
  return FastestNsPerPair(timing, kBlocks, [&blocks, &order] {
    for (char*& block : blocks) block = NewBlock(48);
    for (uint32_t i : order) std::free(blocks[i]);
  });
}

double BatchOfAMillionInOrder(const Timing& timing) { return BatchOfAMillion(timing, false); }
double BatchOfAMillionAtRandom(const Timing& timing) { return BatchOfAMillion(timing, true); }

// A sequence of replacements: which block goes, and how large its successor is.
struct Replacements {
  Replacements(uint64_t seed, size_t count, uint32_t slots, uint32_t max_bytes)
      : slot(count), bytes(count) {
    Random random(seed);
    for (size_t i = 0; i < count; ++i) {
      slot[i] = random.Between(0, slots - 1);
      bytes[i] = static_cast<uint16_t>(random.Between(1, max_bytes));
    }
  }

  Table<uint32_t> slot;
  Table<uint16_t> bytes;
};

void FillSlots(const Table<char*>& slots, uint64_t seed, uint32_t max_bytes) {
  Random random(seed);
  for (char*& slot : slots) slot = NewBlock(random.Between(1, max_bytes));
}

inline void Replace(char*& slot, size_t bytes) {
  std::free(slot);
  slot = NewBlock(bytes);
}

double RandomReplacement(const Timing& timing, uint32_t live_blocks, uint32_t max_bytes) {
  constexpr size_t kReplacements = 1'000'000;
  const Replacements replacements(3, kReplacements, live_blocks, max_bytes);
  Table<char*> slots(live_blocks);
  FillSlots(slots, 4, max_bytes);
  Random random(10);
  return FastestNsPerPair(timing, kReplacements, [&] {
    // Another order of slots each time, or the heap would settle into one.
    const uint32_t slot_mask = random.Between(0, live_blocks - 1);
    for (size_t i = 0; i < kReplacements; ++i) {
      Replace(slots[replacements.slot[i] ^ slot_mask], replacements.bytes[i]);
    }
  });
}

double Replace1Ki(const Timing& timing) { return RandomReplacement(timing, 1 << 10, 8192); }
double Replace128Ki(const Timing& timing) { return RandomReplacement(timing, 1 << 17, 527); }
// Most are larger than what an allocator has slabs for.
double Replace256(const Timing& timing) { return RandomReplacement(timing, 256, 65535); }
double Replace1Mi(const Timing& timing) { return RandomReplacement(timing, 1 << 20, 143); }

// A number of a small interpreter: 16 bytes for one limb to 64 for seven.
struct Number {
  uint64_t limbs;
  uint64_t limb[];
};

Number* NewNumber(uint64_t limbs) {
  auto* number = static_cast<Number*>(std::malloc(sizeof(Number) + limbs * sizeof(uint64_t)));
  number->limbs = limbs;
  return number;
}

Number* Sum(const Number* a, const Number* b) {
  if (a->limbs < b->limbs) std::swap(a, b);
  Number* sum = NewNumber(a->limbs);
  uint64_t carry = 0;
  for (uint64_t i = 0; i < a->limbs; ++i) {
    const uint64_t addend = i < b->limbs ? b->limb[i] : 0;
    const uint64_t partial = a->limb[i] + carry;
    sum->limb[i] = partial + addend;
    carry = (partial < carry) | (sum->limb[i] < addend);
  }
  return sum;
}

// The interpreter's programs: kAdd replaces the two topmost numbers by their sum, any other value
// pushes a new number of so many limbs. Never fewer than two numbers below kAdd, at most kMaxDepth.
constexpr uint8_t kAdd = 0;
constexpr size_t kMaxDepth = 12;

double HotObjects(const Timing& timing) {
  constexpr size_t kSteps = size_t{1} << 15;
  constexpr size_t kRuns = 128;
  Table<uint8_t> program(kSteps);
  Random random(5);
  size_t depth = 0;
  for (uint8_t& step : program) {
    const bool add = depth == kMaxDepth || (depth >= 2 && random.Between(0, 1) == 0);
    step = add ? kAdd : static_cast<uint8_t>(random.Between(1, 7));
    depth = add ? depth - 1 : depth + 1;
  }
  return FastestNsPerPair(timing, kSteps * kRuns, [&program] {
    for (size_t run = 0; run < kRuns; ++run) {
      Number* stack[kMaxDepth];
      size_t top = 0;
      for (uint8_t step : program) {
        if (step != kAdd) {
          Number* number = NewNumber(step);
          for (uint64_t i = 0; i < step; ++i) number->limb[i] = run + i;
          stack[top++] = number;
          continue;
        }
        Number* b = stack[--top];
        Number* a = stack[--top];
        stack[top++] = Sum(a, b);
        std::free(a);
        std::free(b);
      }
      while (top > 0) std::free(stack[--top]);
    }
  });
}

double ProducerConsumer(const Timing& timing) {
  constexpr size_t kBatch = 128;
  constexpr size_t kBatches = 4'000;
  constexpr size_t kQueue = 8;
  Table<uint16_t> sizes(size_t{1} << 16);
  Random random(6);
  for (uint16_t& size : sizes) size = static_cast<uint16_t>(random.Between(16, 256));
  Table<char*> queue(kQueue * kBatch);
  return FastestNsPerPair(timing, kBatch * kBatches, [&sizes, &queue] {
    // Batches handed over and batches freed. The releasing store to each pairs
    // with the other thread's acquiring load: a batch is whole when it is seen,
    // and its place in the queue is free when it is written again.
    alignas(64) std::atomic<size_t> produced = 0;
    alignas(64) std::atomic<size_t> consumed = 0;
    std::thread consumer([&queue, &produced, &consumed] {
      for (size_t batch = 0; batch < kBatches; ++batch) {
        WaitUntil([&] { return produced.load(std::memory_order_acquire) > batch; });
        char** blocks = &queue[batch % kQueue * kBatch];
        for (size_t i = 0; i < kBatch; ++i) {
          if (blocks[i][0] != 1) std::abort();
          std::free(blocks[i]);
        }
        consumed.store(batch + 1, std::memory_order_release);
      }
    });
    for (size_t batch = 0; batch < kBatches; ++batch) {
      WaitUntil([&] { return batch - consumed.load(std::memory_order_acquire) < kQueue; });
      char** blocks = &queue[batch % kQueue * kBatch];
      for (size_t i = 0; i < kBatch; ++i) {
        blocks[i] = NewBlock(sizes[(batch * kBatch + i) % sizes.size()]);
      }
      produced.store(batch + 1, std::memory_order_release);
    }
    consumer.join();
  });
}

// Two threads replace blocks at random, each in a set of 1 Ki blocks, and now and
// then put their set down and take up the one that lies there: about one block in
// ten is freed by another thread than its allocator.
double TwoThreadsChurn(const Timing& timing) {
  constexpr uint32_t kLive = 1 << 10;
  constexpr uint32_t kMaxBytes = 1024;
  constexpr size_t kReplacements = 1'000'000;
  constexpr size_t kPerSet = 8'000;
  const Replacements replacements[] = {
      Replacements(7, kReplacements, kLive, kMaxBytes),
      Replacements(8, kReplacements, kLive, kMaxBytes),
  };
  Table<char*> sets[] = {Table<char*>(kLive), Table<char*>(kLive), Table<char*>(kLive)};
  for (const Table<char*>& set : sets) FillSlots(set, 9, kMaxBytes);
  char** held[] = {sets[0].begin(), sets[1].begin()};
  std::atomic<char**> spare = sets[2].begin();
  return FastestNsPerPair(timing, kReplacements, [&replacements, &held, &spare] {
    auto churn = [&replacements, &held, &spare](size_t thread) {
      char** slots = held[thread];
      size_t until_exchange = kPerSet;
      const Replacements& mine = replacements[thread];
      for (size_t i = 0; i < kReplacements; ++i) {
        Replace(slots[mine.slot[i]], mine.bytes[i]);
        if (--until_exchange == 0) {
          slots = spare.exchange(slots, std::memory_order_acq_rel);
          until_exchange = kPerSet;
        }
      }
      held[thread] = slots;
    };
    std::thread other(churn, 1);
    churn(0);
    other.join();
  });
}

struct Pattern {
  const char* name;
  const char* description;
  clockid_t clock;
  double (*run)(const Timing&);
};

constexpr Pattern kPatterns[] = {
    {"pair16", "malloc(16) and free in turn", CLOCK_PROCESS_CPUTIME_ID, PairOfOneSize},
    {"pair_random", "malloc of 1 to 255 bytes and free in turn", CLOCK_PROCESS_CPUTIME_ID,
     PairOfRandomSizes},
    {"batch100_32", "100 blocks of 32 bytes, freed in order", CLOCK_PROCESS_CPUTIME_ID,
     BatchesOf100},
    {"batch1m_48_order", "1 M blocks of 48 bytes, freed in order", CLOCK_PROCESS_CPUTIME_ID,
     BatchOfAMillionInOrder},
    {"batch1m_48_random", "1 M blocks of 48 bytes, freed at random", CLOCK_PROCESS_CPUTIME_ID,
     BatchOfAMillionAtRandom},
    {"replace_1k_8k", "random replacement, 1 Ki live blocks of at most 8 KiB",
     CLOCK_PROCESS_CPUTIME_ID, Replace1Ki},
    {"replace_256_64k", "random replacement, 256 live blocks of less than 64 KiB",
     CLOCK_PROCESS_CPUTIME_ID, Replace256},
    {"replace_128k_527", "random replacement, 128 Ki live blocks of at most 527 bytes",
     CLOCK_PROCESS_CPUTIME_ID, Replace128Ki},
    {"replace_1m_143", "random replacement, 1 Mi live blocks of at most 143 bytes",
     CLOCK_PROCESS_CPUTIME_ID, Replace1Mi},
    {"hot_objects", "a small interpreter's short-lived numbers of 16 to 64 bytes",
     CLOCK_PROCESS_CPUTIME_ID, HotObjects},
    {"producer_consumer", "one thread allocates batches of 128 blocks, another frees them",
     CLOCK_MONOTONIC, ProducerConsumer},
    {"two_threads_churn", "two threads replace 1 Ki blocks at random and exchange sets of them",
     CLOCK_MONOTONIC, TwoThreadsChurn},
};

const Pattern* FindPattern(const char* name) {
  for (const Pattern& pattern : kPatterns) {
    if (std::strcmp(pattern.name, name) == 0) return &pattern;
  }
  return nullptr;
}

int Fail(const char* complaint, const char* argument) {
  std::fprintf(stderr, "patterns: %s: %s\n", complaint, argument);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  int repetitions = 7;
  const char* clock = nullptr;
  const Pattern* chosen[std::size(kPatterns)];
  size_t chosen_count = 0;
  for (int i = 1; i < argc; ++i) {
    const char* argument = argv[i];
    if (std::strcmp(argument, "--list") == 0) {
      for (const Pattern& pattern : kPatterns) {
        std::printf("%-18s %s\n", pattern.name, pattern.description);
      }
      return 0;
    } else if (std::strncmp(argument, "--repetitions=", 14) == 0) {
      repetitions = std::atoi(argument + 14);
      if (repetitions < 1) return Fail("not a positive count", argument);
    } else if (std::strncmp(argument, "--clock=", 8) == 0) {
      clock = argument + 8;
      if (std::strcmp(clock, "cpu") != 0 && std::strcmp(clock, "wall") != 0) {
        return Fail("not a clock", argument);
      }
    } else if (const Pattern* pattern = FindPattern(argument)) {
      if (chosen_count == std::size(chosen)) return Fail("too many patterns", argument);
      chosen[chosen_count++] = pattern;
    } else {
      return Fail("no such pattern (--list names them)", argument);
    }
  }
  if (chosen_count == 0) {
    for (const Pattern& pattern : kPatterns) chosen[chosen_count++] = &pattern;
  }

  for (size_t i = 0; i < chosen_count; ++i) {
    Timing timing = {repetitions, chosen[i]->clock};
    if (clock != nullptr) {
      timing.clock = std::strcmp(clock, "cpu") == 0 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    }
    bench::Print(chosen[i]->name, chosen[i]->run(timing), "ns");
  }
  return 0;
}
