// A pass of the maintenance thread over lists of slabs, in steps, to give free
// pages of idle slabs back.
//
//   list:  | not yet looked at ... | looked at in this pass ... |
//          first                                              last
//
// A look moves the first slab to the back, so a step goes on where the last one
// ended, whatever was taken and freed between the two: who moves a slab to a list
// puts it first, and has it forget the pass (Slab::ForgetPass).
//
// Thread-safety: who holds the lock of the lists.
// Cost: a step is at most kMostLooks looks and about kMostPurges system calls,
//   some ten to a hundred microseconds, for which the owner of the slabs may wait.
#ifndef QUARRY_TCACHE_SLAB_PASS_H_
#define QUARRY_TCACHE_SLAB_PASS_H_

#include <cstddef>
#include <cstdint>

#include "tcache/size_classes.h"
#include "tcache/slab.h"
#include "tcache/slab_list.h"

namespace quarry {

class SlabPass {
 public:
  static constexpr size_t kMostLooks = 256;
  static constexpr size_t kMostPurges = 32;
  // Of one call of the maintenance thread.
  static constexpr size_t kMostSteps = 1024;
  // With a pass in each quarter of the time for which memory may stay free, what
  // was the same in so many looks before this one is idle.
  static constexpr uint8_t kIdleLooks = 3;

  enum class State {
    kGoesOn,        // This step ended before the pass.
    kSomeAreYoung,  // The pass is over, and left something to the next.
    kAllAreDone,    // Nothing is left until a block is taken or freed.
  };

  // Begins a pass anew, so that it looks at everything.
  void Restart() {
    if (class_ == 0) return;
    passes_ = (passes_ + 1) % Slab::kPasses;
    saw_young_ = false;
    class_ = 0;
  }

  // Has this pass, if it goes on, leave something to the next: slabs that it has
  // looked at may have changed.
  void LookAgain() {
    if (class_ != 0) saw_young_ = true;
  }

  // One step. lists(c) are pointers to the lists of class c, of slabs with free blocks.
  // Pages go back that were free at `looks` looks before. Sets *gave_back if any did.
  template <typename Lists>
  State Step(uint8_t looks, bool* gave_back, Lists lists) {
    const uint8_t pass = static_cast<uint8_t>(passes_ + 1);
    size_t looked = 0;
    size_t purges = 0;
    for (; class_ < kClasses; ++class_) {
      for (SlabList* const list : lists(class_)) {
        while (!list->IsEmpty() && list->first()->pass() != pass) {
          if (looked == kMostLooks || purges >= kMostPurges) {
            return State::kGoesOn;
          }
          Slab* const slab = list->first();
          list->MoveFirstToBack();
          const Slab::Look look = slab->LookForIdlePages(pass, looks);
          ++looked;
          purges += look.purges;
          if (!look.is_done) saw_young_ = true;
          if (look.purges > 0) *gave_back = true;
        }
      }
    }
    const State state = saw_young_ ? State::kSomeAreYoung : State::kAllAreDone;
    passes_ = pass % Slab::kPasses;
    saw_young_ = false;
    class_ = 0;
    return state;
  }

 private:
  uint8_t passes_ = 0;      // Before this one, up to the number of numbers.
  bool saw_young_ = false;  // In this pass.
  SizeClass class_ = 0;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_SLAB_PASS_H_
