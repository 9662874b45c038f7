// Arrays that are zeroed or grow: calloc and realloc.
//
//   vectors calloc|realloc [COUNT]
//
// calloc   COUNT (default 1,500,000) arrays of 64 bytes to 64 KiB, small ones
//          more often, 512 of them live
// realloc  COUNT (default 8,000) arrays that grow side by side, 64 at a time,
//          by a half each step from 16 bytes to 256 KiB
//
// Prints the CPU time of a call, with writes to what is new.

#include <cstdlib>
#include <cstring>

#include "tools/benchmarks/support.h"

namespace {

size_t UseCalloc(size_t count) {
  constexpr uint32_t kLive = 512;
  bench::Table<char*> arrays(kLive);
  bench::Random random(1);
  for (size_t i = 0; i < count; ++i) {
    char*& array = arrays[random.Between(0, kLive - 1)];
    std::free(array);
    const uint32_t bytes = random.PowerLaw(64, 64 << 10);
    array = static_cast<char*>(std::calloc(bytes / 8, 8));
    array[0] = 1;
    bench::Escape(array);
  }
  return count;
}

size_t UseRealloc(size_t count) {
  constexpr size_t kSideBySide = 64;
  constexpr size_t kLimitBytes = 256 << 10;
  bench::Table<char*> arrays(kSideBySide);
  size_t calls = 0;
  for (size_t round = 0; round < count / kSideBySide; ++round) {
    size_t old_bytes = 0;
    for (size_t bytes = 16; bytes <= kLimitBytes; bytes += bytes / 2) {
      for (char*& array : arrays) {
        array = static_cast<char*>(std::realloc(array, bytes));
        std::memset(array + old_bytes, 1, bytes - old_bytes);
        bench::Escape(array);
        ++calls;
      }
      old_bytes = bytes;
    }
    for (char*& array : arrays) {
      std::free(array);
      array = nullptr;
    }
  }
  return calls;
}

}  // namespace

int main(int argc, char** argv) {
  const char* name = argc < 2 ? "" : argv[1];
  const bool uses_calloc = std::strcmp(name, "calloc") == 0;
  if (!uses_calloc && std::strcmp(name, "realloc") != 0) {
    bench::FailUsage(argv[0], "calloc|realloc [COUNT]");
  }
  const double start_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID);
  const size_t calls =
      uses_calloc ? UseCalloc(bench::Argument(argc, argv, 2, 1'500'000))
                  : UseRealloc(bench::Argument(argc, argv, 2, 8'000));
  const double cpu_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID) - start_ns;
  bench::Print("time", cpu_ns / static_cast<double>(calls), "ns");
}
