#include "arena/numa.h"

#include <sched.h>

#include <algorithm>

#include "arena/errno_saver.h"
#include "arena/system_file.h"

namespace quarry {
namespace {

// More than the kernel can be built for.
constexpr size_t kMostNodes = 1024;

size_t NodeOfThisProcessor() {
  ErrnoSaver saver;
  unsigned processor, node;
  if (getcpu(&processor, &node) != 0) node = 0;
  return node;
}

}  // namespace

constinit Numa numa;

size_t ParseNodeList(std::string_view text) {
  size_t last = 0;
  size_t number = 0;
  for (const char c : text) {
    if (c >= '0' && c <= '9') {
      number = number * 10 + static_cast<size_t>(c - '0');
      if (number >= kMostNodes) return 1;
      last = std::max(last, number);
    } else if (c == '-' || c == ',') {
      number = 0;
    } else {
      return c == '\n' ? last + 1 : 1;
    }
  }
  return last + 1;
}

size_t Numa::LookUpNodes() {
  char text[256];
  PathBuffer path;
  path.Append(system_root_).Append("/sys/devices/system/node/online");
  const size_t bytes = ReadSystemFile(path.text(), text, sizeof(text));
  // No such file: a kernel that knows of no nodes.
  const size_t nodes = ParseNodeList({text, bytes});
  nodes_.store(nodes, std::memory_order_relaxed);
  return nodes;
}

size_t Numa::CurrentNode() {
  const NodeFunction substitute = current_node_.load(std::memory_order_relaxed);
  const size_t node =
      substitute != nullptr ? substitute() : NodeOfThisProcessor();
  // A node may have come after they were counted. There is a first one anyhow.
  return node == 0 ? 0 : node % nodes();
}

void Numa::Substitute(size_t nodes, NodeFunction current_node) {
  nodes_.store(nodes, std::memory_order_relaxed);
  current_node_.store(current_node, std::memory_order_relaxed);
}

}  // namespace quarry
