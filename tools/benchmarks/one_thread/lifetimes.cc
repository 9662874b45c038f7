// Blocks of mixed lifetimes: allocated in one phase, freed at random in
// another, with survivors of every phase.
//
//   lifetimes [PHASES]
//
// In each of PHASES (default 20) 200,000 blocks of 16 to 8192 bytes, small ones
// more often, are allocated and nine in ten of them freed at random; a quarter
// of the survivors of all phases goes, too. Prints the CPU time per block and
// the peak resident set in relation to the peak of live bytes.

#include <algorithm>
#include <cstdlib>

#include "tools/benchmarks/support.h"

namespace {

struct Block {
  char* data;
  uint32_t bytes;
};

}  // namespace

int main(int argc, char** argv) {
  constexpr size_t kBlocks = 200'000;
  const size_t phases = bench::Argument(argc, argv, 1, 20);
  bench::Table<Block> fresh(kBlocks);
  bench::Table<Block> survivors(kBlocks);
  size_t survivor_count = 0;
  size_t live_bytes = 0;
  size_t peak_live_bytes = 0;
  bench::Random random(1);
  const auto free_last = [&live_bytes](const bench::Table<Block>& blocks,
                                       size_t& count) {
    --count;
    std::free(blocks[count].data);
    live_bytes -= blocks[count].bytes;
  };

  const double baseline = bench::ResidentBytes();
  const double start_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID);
  for (size_t phase = 0; phase < phases; ++phase) {
    for (Block& block : fresh) {
      block.bytes = random.PowerLaw(16, 8192);
      block.data = bench::NewBlock(block.bytes);
      bench::Touch(block.data, block.bytes);
      live_bytes += block.bytes;
    }
    peak_live_bytes = std::max(peak_live_bytes, live_bytes);
    random.Shuffle(fresh.begin(), kBlocks);
    for (size_t count = kBlocks; count > kBlocks / 10;) free_last(fresh, count);
    random.Shuffle(survivors.begin(), survivor_count);
    for (size_t i = survivor_count / 4; i > 0; --i) {
      free_last(survivors, survivor_count);
    }
    for (size_t i = 0; i < kBlocks / 10; ++i) {
      survivors[survivor_count++] = fresh[i];
    }
  }
  const double cpu_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID) - start_ns;
  bench::Print("time", cpu_ns / static_cast<double>(phases * kBlocks), "ns");
  bench::Print("peak_per_live",
               (bench::PeakResidentBytes() - baseline) /
                   static_cast<double>(peak_live_bytes),
               "x");
}
