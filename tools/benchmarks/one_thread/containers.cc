// Containers of small strings, grown, looked up, shrunk and dropped.
//
//   containers flat_hash_map|map|list [ENTRIES]
//
// ENTRIES (default 300,000) strings of 8 to 80 bytes go in; half of them go out
// again at random and others come in. Prints the CPU time per insertion or
// removal.

#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "tools/benchmarks/support.h"

namespace {

// Key `number`, the same each time; most do not fit into the string object.
std::string Key(uint32_t number) {
  bench::Random random(number);
  std::string key(random.Between(8, 80), 'k');
  std::memcpy(key.data(), &number, sizeof(number));
  return key;
}

template <typename Map>
size_t UseMap(size_t entries) {
  Map map;
  bench::Random random(1);
  const auto last = static_cast<uint32_t>(entries - 1);
  for (uint32_t i = 0; i <= last; ++i) map[Key(i)] = Key(~i);
  for (size_t i = 0; i < entries / 2; ++i) {
    map.erase(Key(random.Between(0, last)));
    const uint32_t other = random.Between(last + 1, 2 * last + 1);
    map[Key(other)] = Key(~other);
  }
  return 2 * entries;
}

size_t UseList(size_t entries) {
  std::list<std::string> list;
  bench::Random random(1);
  for (uint32_t i = 0; i < entries; ++i) list.push_back(Key(i));
  size_t operations = entries;
  // Through the list, removing and inserting at random: in the end its order
  // is not that of addresses.
  for (auto it = list.begin(); it != list.end(); ++operations) {
    if (random.Between(0, 1) == 0) {
      it = list.erase(it);
    } else {
      list.push_front(Key(random.Between(0, UINT32_MAX)));
      ++it;
    }
  }
  list.sort();
  return operations;
}

}  // namespace

int main(int argc, char** argv) {
  const char* name = argc < 2 ? "" : argv[1];
  const size_t entries = bench::Argument(argc, argv, 2, 300'000);
  const double start_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID);
  size_t operations;
  if (std::strcmp(name, "flat_hash_map") == 0) {
    operations = UseMap<absl::flat_hash_map<std::string, std::string>>(entries);
  } else if (std::strcmp(name, "map") == 0) {
    operations = UseMap<std::map<std::string, std::string>>(entries);
  } else if (std::strcmp(name, "list") == 0) {
    operations = UseList(entries);
  } else {
    bench::FailUsage(argv[0], "flat_hash_map|map|list [ENTRIES]");
  }
  const double cpu_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID) - start_ns;
  bench::Print("time", cpu_ns / static_cast<double>(operations), "ns");
}
