// For a compiler to work on: library templates over types of its own.

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <regex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

template <size_t n>
struct Number {
  std::string name = std::to_string(n);
  std::optional<std::vector<size_t>> parts;
  auto operator<=>(const Number& other) const { return name <=> other.name; }
  bool operator==(const Number& other) const { return name == other.name; }
};

template <size_t n>
size_t Use() {
  std::map<Number<n>, std::variant<size_t, std::string, Number<n>>> map;
  std::unordered_map<std::string, std::unique_ptr<Number<n>>> index;
  std::vector<std::tuple<Number<n>, std::function<size_t()>>> calls;
  for (size_t i = 0; i < n; ++i) {
    map[Number<n>{std::to_string(i), std::nullopt}] = i;
    index.emplace(std::to_string(i), std::make_unique<Number<n>>());
    calls.emplace_back(Number<n>{}, [i, &map] { return map.size() + i; });
  }
  std::stable_sort(calls.begin(), calls.end(), [](auto& a, auto& b) {
    return std::get<0>(a) < std::get<0>(b);
  });
  return std::accumulate(calls.begin(), calls.end(), size_t{0},
                         [](size_t sum, auto& call) {
                           return sum + std::get<1>(call)();
                         });
}

template <size_t... n>
size_t UseAll(std::index_sequence<n...>) {
  return (Use<n>() + ... + 0);
}

bool Matches(const std::string& text) {
  return std::regex_match(text, std::regex("(a|b)*[0-9]+(c{2,3})?"));
}

size_t All() { return UseAll(std::make_index_sequence<2>()); }
