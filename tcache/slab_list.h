// Doubly linked slabs.
//
//   first_ -> slab <-> slab <-> ... <-> last -> nullptr
//               `------ previous ---------^
//
// Thread-safety: none of its own; a slab is in one list at most.
// Cost: O(1) for each change.
#ifndef QUARRY_TCACHE_SLAB_LIST_H_
#define QUARRY_TCACHE_SLAB_LIST_H_

#include <utility>

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

  // Moves those for which is_wanted(slab) to the front of `to`, and writes to no other but
  // their neighbours.
  template <typename IsWanted>
  void MoveIf(IsWanted is_wanted, SlabList* to) {
    Slab* next;
    for (Slab* slab = first_; slab != nullptr; slab = next) {
      next = slab->next;
      if (!is_wanted(slab)) continue;
      Remove(slab);
      to->PushFront(slab);
    }
  }

  // Moves all of `list` behind the last of this one.
  void Append(SlabList* list) {
    Slab* const added = std::exchange(list->first_, nullptr);
    if (added == nullptr) return;
    if (first_ == nullptr) {
      first_ = added;
      return;
    }
    Slab* const last = first_->previous;
    last->next = added;
    first_->previous = added->previous;
    added->previous = last;
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
