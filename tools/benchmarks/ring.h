// A bounded queue between two threads, in mappings of its own.

#ifndef TOOLS_BENCHMARKS_RING_H_
#define TOOLS_BENCHMARKS_RING_H_

#include <atomic>
#include <cstddef>

#include "tools/benchmarks/support.h"

namespace bench {

// Thread-safety: one thread pushes, one pops.
// Ordering: what the pusher wrote before Push() is seen after Pop(). An entry's
//   place is written again only after it has been read.
template <typename T>
class Ring {
 public:
  explicit Ring(size_t capacity) : entries_(capacity) {}

  bool TryPush(T entry) {
    const size_t pushed = pushed_.load(std::memory_order_relaxed);
    // Pairs with the release in TryPop().
    if (pushed - popped_.load(std::memory_order_acquire) == entries_.size()) {
      return false;
    }
    entries_[pushed % entries_.size()] = entry;
    pushed_.store(pushed + 1, std::memory_order_release);
    return true;
  }

  bool TryPop(T& entry) {
    const size_t popped = popped_.load(std::memory_order_relaxed);
    // Pairs with the release in TryPush().
    if (pushed_.load(std::memory_order_acquire) == popped) return false;
    entry = entries_[popped % entries_.size()];
    popped_.store(popped + 1, std::memory_order_release);
    return true;
  }

  void Push(T entry) {
    WaitUntil([&] { return TryPush(entry); });
  }

  T Pop() {
    T entry;
    WaitUntil([&] { return TryPop(entry); });
    return entry;
  }

  // As many as have been pushed and not popped; exact on the popping thread,
  // up to pushes that are under way.
  size_t Count() const {
    return pushed_.load(std::memory_order_relaxed) -
           popped_.load(std::memory_order_relaxed);
  }

 private:
  Table<T> entries_;
  alignas(64) std::atomic<size_t> pushed_ = 0;
  alignas(64) std::atomic<size_t> popped_ = 0;
};

}  // namespace bench

#endif  // TOOLS_BENCHMARKS_RING_H_
