// C++ objects of known size, deleted with it: replaced at random.
//
//   sized_delete [REPLACEMENTS]
//
// 16,384 live objects of 16 to 512 bytes; REPLACEMENTS (default 10 M). Prints
// the CPU time of a delete and a new.

#include <cstdlib>
#include <new>

#include "tools/benchmarks/support.h"

namespace {

struct Object {
  char* data;
  size_t bytes;
};

Object New(bench::Random& random) {
  const size_t bytes = random.Between(16, 512);
  char* data = static_cast<char*>(::operator new(bytes));
  bench::Touch(data, bytes);
  bench::Escape(data);
  return {data, bytes};
}

}  // namespace

int main(int argc, char** argv) {
  constexpr uint32_t kLive = 1 << 14;
  const size_t replacements = bench::Argument(argc, argv, 1, 10'000'000);
  bench::Random random(1);
  bench::Table<Object> objects(kLive);
  for (Object& object : objects) object = New(random);
  const double start_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID);
  for (size_t i = 0; i < replacements; ++i) {
    Object& object = objects[random.Between(0, kLive - 1)];
    ::operator delete(object.data, object.bytes);
    object = New(random);
  }
  const double cpu_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID) - start_ns;
  bench::Print("time", cpu_ns / static_cast<double>(replacements), "ns");
}
