#ifndef QUARRY_ARENA_NUMA_H_
#define QUARRY_ARENA_NUMA_H_

#include <atomic>
#include <cstddef>
#include <string_view>

namespace quarry {

// How many nodes a list like "0-1,3" has room for: the largest number in it and
// one. 1 for what is no such list.
size_t ParseNodeList(std::string_view text);

// The memory nodes of the machine: memory of the node that a processor belongs
// to is nearer than that of others.
//
// A page is placed on the node of whoever first touches it, and an arena does
// not touch what it maps. So it is enough that threads of one node share
// arenas, and those of two do not.
//
// Thread-safety: any thread, with any lock held.
// Ordering: relaxed. Whoever looks the nodes up stores the same number.
// Cost: nodes() is one load after the first call. CurrentNode() makes no system
//   call where the kernel offers getcpu() to user space.
class Numa {
 public:
  using NodeFunction = size_t (*)();

  // `system_root` stands before /sys.
  constexpr explicit Numa(const char* system_root = "")
      : system_root_(system_root) {}
  Numa(const Numa&) = delete;
  Numa& operator=(const Numa&) = delete;

  // At least 1.
  size_t nodes() {
    const size_t nodes = nodes_.load(std::memory_order_relaxed);
    return nodes != 0 ? nodes : LookUpNodes();
  }

  // The node that the calling thread runs on just now; less than nodes(), which
  // it asks for on others than the first.
  size_t CurrentNode();

  // From now on there are `nodes` of them, and `current_node` tells which one
  // a thread is on; Substitute(0, nullptr) asks the system again. For tests of
  // machines that there are not.
  void Substitute(size_t nodes, NodeFunction current_node);

 private:
  size_t LookUpNodes();

  const char* const system_root_;
  std::atomic<size_t> nodes_{0};  // 0 until they were looked up.
  std::atomic<NodeFunction> current_node_{nullptr};
};

// The nodes of this machine.
extern constinit Numa numa;

}  // namespace quarry

#endif  // QUARRY_ARENA_NUMA_H_
