// A store of JSON documents: parsed from text, changed, printed and replaced.
//
//   documents [UPDATES]
//
// 2,000 documents of some 50 values each. UPDATES (default 20,000) times one is
// replaced by what is parsed from a text, and another is printed. Prints the
// CPU time of an update.

#include <charconv>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

struct Value;
using Array = std::vector<Value>;
using Object = std::map<std::string, Value>;

struct Value {
  std::variant<std::nullptr_t, double, std::string, Array, Object> content;
};

// Of what Write() writes: no white space, no escapes.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value Parse() {
    switch (text_.front()) {
      case '{': {
        Object object;
        while (Next() != '}') {
          std::string key = String();
          text_.remove_prefix(1);
          object.emplace(std::move(key), Parse());
        }
        text_.remove_prefix(1);
        return {std::move(object)};
      }
      case '[': {
        Array array;
        while (Next() != ']') array.push_back(Parse());
        text_.remove_prefix(1);
        return {std::move(array)};
      }
      case '"':
        return {String()};
      case 'n':
        text_.remove_prefix(4);
        return {nullptr};
      default: {
        double number;
        const auto parsed =
            std::from_chars(text_.data(), text_.data() + text_.size(), number);
        if (parsed.ec != std::errc()) std::abort();
        text_.remove_prefix(static_cast<size_t>(parsed.ptr - text_.data()));
        return {number};
      }
    }
  }

 private:
  // Past an opening bracket or a comma; what comes then. A closing bracket
  // stays.
  char Next() {
    if (text_.front() == '{' || text_.front() == '[' || text_.front() == ',') {
      text_.remove_prefix(1);
    }
    return text_.front();
  }

  std::string String() {
    const size_t end = text_.find('"', 1);
    std::string string(text_.substr(1, end - 1));
    text_.remove_prefix(end + 1);
    return string;
  }

  std::string_view text_;
};

void Write(const Value& value, std::string& text) {
  if (const auto* number = std::get_if<double>(&value.content)) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof(digits), *number);
    text.append(digits, end.ptr);
  } else if (const auto* string = std::get_if<std::string>(&value.content)) {
    text.append("\"").append(*string).append("\"");
  } else if (const auto* array = std::get_if<Array>(&value.content)) {
    text += '[';
    for (const Value& element : *array) {
      if (&element != array->data()) text += ',';
      Write(element, text);
    }
    text += ']';
  } else if (const auto* object = std::get_if<Object>(&value.content)) {
    text += '{';
    const char* separator = "";
    for (const auto& [key, member] : *object) {
      text.append(separator).append("\"").append(key).append("\":");
      Write(member, text);
      separator = ",";
    }
    text += '}';
  } else {
    text += "null";
  }
}

Value Invent(bench::Random& random, int depth) {
  const uint32_t kind = random.Between(0, 9);
  if (depth > 0 && kind < 3) {
    Array array(random.Between(2, 12));
    for (Value& element : array) element = Invent(random, depth - 1);
    return {std::move(array)};
  }
  if (depth > 0 && kind < 7) {
    Object object;
    for (uint32_t i = random.Between(3, 10); i > 0; --i) {
      object[std::string(random.Between(3, 24), 'k') + std::to_string(i)] =
          Invent(random, depth - 1);
    }
    return {std::move(object)};
  }
  if (kind == 9) return {nullptr};
  if (kind == 8) return {random.Between(0, 1000) / 8.0};
  return {std::string(random.PowerLaw(4, 400), 's')};
}

}  // namespace

int main(int argc, char** argv) {
  constexpr uint32_t kDocuments = 2'000;
  const size_t updates = bench::Argument(argc, argv, 1, 20'000);
  bench::Random random(1);
  std::vector<std::string> texts(200);
  for (std::string& text : texts) Write(Invent(random, 3), text);
  std::vector<Value> store(kDocuments);
  size_t printed = 0;

  const double start_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID);
  for (size_t i = 0; i < updates; ++i) {
    store[random.Between(0, kDocuments - 1)] =
        Parser(texts[i % texts.size()]).Parse();
    std::string text;
    Write(store[random.Between(0, kDocuments - 1)], text);
    printed += text.size();
  }
  const double cpu_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID) - start_ns;
  if (printed == 0) return 1;
  bench::Print("time", cpu_ns / static_cast<double>(updates), "ns");
}
