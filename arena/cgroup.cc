#include "arena/cgroup.h"

#include <algorithm>
#include <cstring>

#include "arena/system_file.h"

namespace quarry {
namespace {

// More than any machine has: version 1 writes 2^63 less a page for no limit.
constexpr size_t kMostSaneBytes = size_t{1} << 50;

// The smaller of two limits of which 0 is none.
size_t SmallerLimit(size_t a, size_t b) {
  if (a == 0 || b == 0) return a + b;
  return std::min(a, b);
}

// What stands before the first `separator`, which is taken off `rest` with it.
std::string_view TakeUntil(std::string_view& rest, char separator) {
  const size_t end = std::min(rest.find(separator), rest.size());
  const std::string_view taken(rest.data(), end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return taken;
}

// Not on the stack, which may be that of a coroutine and have some KiB.
struct {
  char text[4096] = {};
  PathBuffer path;
} constinit scratch;

struct Limits {
  bool found = false;  // Some file was there, whatever it said.
  size_t bytes = 0;

  void Add(PathBuffer& group, const char* file) {
    char text[32];
    const size_t group_bytes = group.bytes();
    const size_t text_bytes =
        ReadSystemFile(group.Append(file).text(), text, sizeof(text));
    group.CutTo(group_bytes);
    if (text_bytes == 0) return;
    found = true;
    bytes = SmallerLimit(bytes, ParseCgroupLimit({text, text_bytes}));
  }
};

// The limits in `files` of the group `path` and of all about it, up to where
// `mount` is. A group that is not there has none: within a container the path
// may be one that only the machine about it has.
template <size_t kFiles>
Limits LimitsUpward(const char* root, const char* mount, std::string_view path,
                    const char* const (&files)[kFiles]) {
  Limits limits;
  PathBuffer& group = scratch.path;
  group.CutTo(0);
  group.Append(root).Append(mount);
  const size_t top_bytes = group.bytes();
  group.Append(path.data(), path.size());
  while (true) {
    for (const char* file : files) limits.Add(group, file);
    if (group.bytes() <= top_bytes) return limits;
    size_t bytes = group.bytes() - 1;
    while (bytes > top_bytes && group.text()[bytes] != '/') --bytes;
    group.CutTo(bytes);
  }
}

}  // namespace

size_t ParseCgroupLimit(std::string_view text) {
  size_t number = 0;
  for (const char c : TakeUntil(text, '\n')) {
    if (c < '0' || c > '9') return 0;
    number = number * 10 + static_cast<size_t>(c - '0');
    if (number > kMostSaneBytes) return 0;
  }
  return number;
}

// Each line is number:controller,controller:path.
std::string_view FindCgroupPath(std::string_view text,
                                std::string_view controller) {
  while (!text.empty()) {
    std::string_view line = TakeUntil(text, '\n');
    TakeUntil(line, ':');
    std::string_view controllers = TakeUntil(line, ':');
    do {
      if (TakeUntil(controllers, ',') == controller) return line;
    } while (!controllers.empty());
  }
  return {};
}

size_t CgroupMemoryLimit(const char* root) {
  scratch.path.CutTo(0);
  const size_t bytes = ReadSystemFile(
      scratch.path.Append(root).Append("/proc/self/cgroup").text(),
      scratch.text, sizeof(scratch.text));
  const std::string_view text(scratch.text, bytes);
  static constexpr const char* kSecondVersion[] = {"/memory.high",
                                                   "/memory.max"};
  static constexpr const char* kFirstVersion[] = {"/memory.limit_in_bytes"};
  const std::string_view group = FindCgroupPath(text, "");
  if (!group.empty()) {
    const Limits limits =
        LimitsUpward(root, "/sys/fs/cgroup", group, kSecondVersion);
    if (limits.found) return limits.bytes;
  }
  const std::string_view old_group = FindCgroupPath(text, "memory");
  if (old_group.empty()) return 0;
  return LimitsUpward(root, "/sys/fs/cgroup/memory", old_group, kFirstVersion)
      .bytes;
}

}  // namespace quarry
