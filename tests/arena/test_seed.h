#ifndef QUARRY_TESTS_ARENA_TEST_SEED_H_
#define QUARRY_TESTS_ARENA_TEST_SEED_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace quarry {

// A new seed for each run, printed so that a failure can be repeated:
// QUARRY_TEST_SEED=<seed> sets it.
inline uint64_t TestSeed() {
  const char* const given = getenv("QUARRY_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? strtoull(given, nullptr, 10) : std::random_device()();
  printf("QUARRY_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  fflush(stdout);
  return seed;
}

}  // namespace quarry

#endif  // QUARRY_TESTS_ARENA_TEST_SEED_H_
