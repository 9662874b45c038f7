// Doubly linked slabs.
//
//   first_ -> slab <-> slab <-> ... <-> last -> nullptr
//               `------ previous ---------^
//
// Thread-safety: none of its own; a slab is in one list at most.
// Cost: O(1) for each change.
#ifndef QUARRY_TCACHE_SLAB_LIST_H_
#define QUARRY_TCACHE_SLAB_LIST_H_

#include "tcache/slab.h"

namespace quarry {

class SlabList {
 public:
  Slab* first() const { return first_; }
  bool IsEmpty() const { return first_ == nullptr; }

  void PushFront(Slab* slab) {
    slab->next = first_;
    slab->previous = slab;
    if (first_ != nullptr) {
      slab->previous = first_->previous;
      first_->previous = slab;
    }
    first_ = slab;
  }

  void Remove(Slab* slab) {
    if (slab == first_) {
      first_ = slab->next;
    } else {
      slab->previous->next = slab->next;
    }
    Slab* const behind = slab->next != nullptr ? slab->next : first_;
    if (behind != nullptr) behind->previous = slab->previous;
  }

  Slab* PopFront() {
    Slab* slab = first_;
    if (slab != nullptr) Remove(slab);
    return slab;
  }

  // Calls visit(slab) for each, first to last, which must leave the list as it is.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (Slab* slab = first_; slab != nullptr; slab = slab->next) visit(slab);
  }

  // Requires that there is one.
  void MoveFirstToBack() {
    Slab* const slab = first_;
    if (slab->next == nullptr) return;
    first_ = slab->next;
    slab->previous->next = slab;
    slab->next = nullptr;
    first_->previous = slab;
  }

 private:
  Slab* first_ = nullptr;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_SLAB_LIST_H_
