// Containers, strings, exceptions and threads: operator new and delete in
// every usual form.
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <new>
#include <regex>
#include <stdexcept>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

struct alignas(128) Wide {
  uint64_t words[20] = {};
};

struct Shape {
  virtual ~Shape() = default;
  virtual double Area() const = 0;
};
struct Square : Shape {
  explicit Square(double side) : side(side) {}
  double Area() const override { return side * side; }
  double side;
};

static uint64_t Work(uint64_t seed) {
  uint64_t sum = seed;
  std::map<std::string, std::vector<int>> map;
  std::unordered_map<uint64_t, std::list<std::string>> table;
  for (uint64_t i = 0; i < 30000; ++i) {
    sum = sum * 6364136223846793005u + 1442695040888963407u;
    const uint64_t n = sum >> 40;
    map[std::to_string(n % 2000)].push_back(static_cast<int>(i));
    table[n % 3000].push_back(std::string(n % 90, 'x'));
    if (n % 5 == 0) table.erase(n % 2999);
  }
  for (const auto& [key, list] : map) sum += key.size() * list.size();
  for (const auto& [key, list] : table) sum ^= key + list.size();
  return sum;
}

int main() {
  std::vector<uint64_t> sums(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < sums.size(); ++t) {
    threads.emplace_back([&sums, t] { sums[t] = Work(t + 1); });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t sum : sums) std::printf("%llu\n", (unsigned long long)sum);

  std::vector<std::unique_ptr<Wide>> wide;
  bool aligned = true;
  for (int i = 0; i < 1000; ++i) {
    wide.push_back(std::make_unique<Wide>());
    aligned &= reinterpret_cast<uintptr_t>(wide.back().get()) % 128 == 0;
  }
  std::printf("aligned %d\n", aligned);

  double area = 0;
  for (int i = 0; i < 5000; ++i) {
    std::unique_ptr<Shape> shape = std::make_unique<Square>(i % 10);
    area += shape->Area();
  }
  std::printf("%g\n", area);

  int caught = 0;
  for (int i = 0; i < 500; ++i) {
    try {
      throw std::runtime_error(std::string(i, 'e'));
    } catch (const std::exception& error) {
      caught += static_cast<int>(std::string(error.what()).size());
    }
  }
  try {
    volatile size_t impossible = SIZE_MAX / 4;
    ::operator delete(::operator new(impossible));
  } catch (const std::bad_alloc&) {
    std::printf("bad_alloc ");
  }
  std::printf("%d\n", caught);

  std::ostringstream text;
  for (int i = 0; i < 4000; ++i) text << i << ' ';
  const std::string numbers = text.str();
  const std::regex pattern("([0-9])\\1");
  std::printf("%td\n", std::distance(
      std::sregex_iterator(numbers.begin(), numbers.end(), pattern),
      std::sregex_iterator()));
  return 0;
}
