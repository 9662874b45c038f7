// The fast paths one by one, beside the least that they can cost.
//
//   fast_path [Google Benchmark's options but a filter]
//
// Prints `NAME NS ns` for every pair of calls, and `NAME RATIO limits`, its
// time in pairs of calls of limit.h.

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "tools/benchmarks/fast_path/limit.h"
#include "tools/benchmarks/support.h"

namespace {

constexpr char kLimit[] = "limit";

// Times `allocate` and `deallocate` in turn.
template <typename Allocate, typename Deallocate>
void Add(const char* name, Allocate allocate, Deallocate deallocate) {
  benchmark::RegisterBenchmark(name, [=](benchmark::State& state) {
    for (auto _ : state) {
      void* block = allocate();
      bench::Escape(block);
      deallocate(block);
    }
  });
}

// The limit first: it is what PrintAll() relates the others to.
void AddAll() {
  Add(
      kLimit, [] { return LimitPop(32); }, [](void* p) { LimitPush(p); });
  Add(
      "malloc_free_32", [] { return std::malloc(32); }, std::free);
  Add(
      "malloc_free_1024", [] { return std::malloc(1024); }, std::free);
  Add(
      "new_delete_32", [] { return ::operator new(32); },
      [](void* p) { ::operator delete(p); });
  Add(
      "new_sized_delete_32", [] { return ::operator new(32); },
      [](void* p) { ::operator delete(p, size_t{32}); });
  Add(
      "calloc_free_32", [] { return std::calloc(1, 32); }, std::free);
  Add(
      "aligned_alloc_free_64", [] { return std::aligned_alloc(64, 64); },
      std::free);
  Add(
      "malloc_realloc_free_32",
      [] { return std::realloc(std::malloc(30), 32); }, std::free);
}

// Keeps what Google Benchmark measured, for Print() at the end.
class Figures : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      pairs_.push_back({run.benchmark_name(), run.GetAdjustedCPUTime()});
    }
  }

  void PrintAll() const {
    const double limit_ns = pairs_.front().ns;
    for (const Pair& pair : pairs_) {
      if (pair.name == kLimit) continue;
      bench::Print(pair.name.c_str(), pair.ns, "ns");
      bench::Print(pair.name.c_str(), pair.ns / limit_ns, "limits");
    }
  }

 private:
  struct Pair {
    std::string name;
    double ns;
  };

  std::vector<Pair> pairs_;
};

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  AddAll();
  Figures figures;
  benchmark::RunSpecifiedBenchmarks(&figures);
  figures.PrintAll();
}
