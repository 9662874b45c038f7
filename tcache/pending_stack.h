// The slabs of one thread cache that have remote frees to drain.
//
// A thread that got the token of a slab (see RemoteBitmap) pushes the slab; the
// owner takes the whole stack. A stack is closed while its cache has no thread:
// a push then fails, and the pusher looks again at who owns the slab.
//
// Thread-safety: Push() on any thread, for a slab whose token the caller has,
//   which therefore is on no stack. TakeAll(), Close() and Open() under the
//   cache's lock.
// Ordering: Push() releases the slab's pending_next and TakeAll() and Close()
//   acquire it. There is no ABA problem: nothing is popped alone, so a head
//   that went and came back is still the head that pending_next names.
// Source: the push side of Treiber 1986; emptied whole, as message queues of
//   snmalloc (Lietar et al. 2019) are.
#ifndef QUARRY_TCACHE_PENDING_STACK_H_
#define QUARRY_TCACHE_PENDING_STACK_H_

#include <atomic>
#include <cstdint>

#include "tcache/slab.h"

namespace quarry {

class PendingStack {
 public:
  // False when the stack is closed; the token is then still the caller's.
  [[nodiscard]] bool Push(Slab* slab) {
    Slab* head = head_.load(std::memory_order_relaxed);
    do {
      if (head == Closed()) return false;
      slab->pending_next = head;
      // Releases to TakeAll() what the slab holds, and sequentially consistent
      // for the maintenance thread, which must not overlook the slab when it
      // falls asleep: see maintenance_signal.h.
    } while (!head_.compare_exchange_weak(head, slab,
                                          std::memory_order_seq_cst,
                                          std::memory_order_relaxed));
    return true;
  }

  bool IsEmpty() const {
    return head_.load(std::memory_order_seq_cst) == nullptr;
  }
  bool IsClosed() const {
    return head_.load(std::memory_order_relaxed) == Closed();
  }

  // Whether it is open and not empty; without an order, as a hint.
  bool HasAny() const {
    const Slab* const head = head_.load(std::memory_order_relaxed);
    return head != nullptr && head != Closed();
  }

  // All pushed slabs, linked by pending_next.
  [[nodiscard]] Slab* TakeAll() {
    return head_.exchange(nullptr, std::memory_order_acquire);
  }

  // TakeAll() and refuse from now on. Requires that the stack is open.
  [[nodiscard]] Slab* Close() {
    return head_.exchange(Closed(), std::memory_order_acquire);
  }

  void Open() { head_.store(nullptr, std::memory_order_relaxed); }

 private:
  // An address that no slab has.
  static Slab* Closed() { return reinterpret_cast<Slab*>(uintptr_t{1}); }

  std::atomic<Slab*> head_{nullptr};
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_PENDING_STACK_H_
