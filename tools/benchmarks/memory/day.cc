// A day in the life of a server: every phase has sizes of its own, and leaves
// survivors to the next.
//
//   day [SECONDS]
//
// SECONDS (default 60) are a day of 12 phases. A phase replaces blocks at
// random among 100,000, of sizes that no phase before it had most of, then
// keeps one in ten of them to the end of the day and frees the others. Every
// tenth of a second goes as `SECONDS,RESIDENT,LIVE` in bytes into the file that
// the variable SERIES names, if there is one. Prints the time per block, what
// was resident at the most, and at the end in relation to what is live: all
// else is fragmentation.

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "tools/benchmarks/support.h"

namespace {

constexpr uint32_t kSlots = 100'000;
constexpr size_t kPhases = 12;
constexpr size_t kKept = kSlots / 10;

struct Block {
  char* data;
  uint32_t bytes;
};

// From 16 to 64 bytes in the first phase to 2 to 8 KiB in the eighth, then the
// same from the start: morning comes again.
uint32_t Size(bench::Random& random, size_t phase) {
  const uint32_t low = 16u << (phase % 8);
  return random.PowerLaw(low, 4 * low);
}

class Day {
 public:
  explicit Day(double seconds)
      : phase_ns_(seconds * 1e9 / kPhases), slots_(kSlots), kept_(kSlots * 2) {
    if (const char* series = std::getenv("SERIES")) {
      series_ = open(series, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    }
    baseline_ = bench::ResidentBytes();
    start_ns_ = bench::NowNs();
  }

  void LiveThrough() {
    for (size_t phase = 0; phase < kPhases; ++phase) {
      const double end_ns =
          start_ns_ + static_cast<double>(phase + 1) * phase_ns_;
      while (bench::NowNs() < end_ns) {
        for (int i = 0; i < 1000; ++i) {
          Block& block = slots_[random_.Between(0, kSlots - 1)];
          Free(block);
          block = New(Size(random_, phase));
        }
        Sample();
      }
      EndPhase();
    }
  }

  void PrintFigures() {
    const double resident = bench::ResidentBytes() - baseline_;
    bench::Print("time", phase_ns_ * kPhases / static_cast<double>(blocks_),
                 "ns");
    bench::Print("most_resident", most_resident_ / bench::kMib, "MiB");
    bench::Print("resident_per_live",
                 resident / static_cast<double>(live_bytes_), "x");
  }

 private:
  Block New(uint32_t bytes) {
    char* data = bench::NewBlock(bytes);
    bench::Touch(data, bytes);
    live_bytes_ += bytes;
    ++blocks_;
    return {data, bytes};
  }

  void Free(Block& block) {
    std::free(block.data);
    live_bytes_ -= block.bytes;
    block = {};
  }

  void EndPhase() {
    random_.Shuffle(slots_.begin(), kSlots);
    for (size_t i = 0; i < kKept; ++i) {
      kept_[kept_count_++] = std::exchange(slots_[i], {});
    }
    for (Block& block : slots_) Free(block);
    last_sample_ns_ = 0;
    Sample();
  }

  void Sample() {
    const double now_ns = bench::NowNs();
    if (now_ns - last_sample_ns_ < 1e8) return;
    last_sample_ns_ = now_ns;
    const double resident = bench::ResidentBytes() - baseline_;
    most_resident_ = std::max(most_resident_, resident);
    if (series_ >= 0) {
      dprintf(series_, "%.1f,%.0f,%zu\n", (now_ns - start_ns_) / 1e9, resident,
              live_bytes_);
    }
  }

  const double phase_ns_;
  bench::Random random_{1};
  bench::Table<Block> slots_;
  bench::Table<Block> kept_;
  size_t kept_count_ = 0;
  size_t live_bytes_ = 0;
  size_t blocks_ = 0;
  int series_ = -1;
  double baseline_;
  double start_ns_;
  double last_sample_ns_ = 0;
  double most_resident_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Day day(static_cast<double>(bench::Argument(argc, argv, 1, 60)));
  day.LiveThrough();
  day.PrintFigures();
}
