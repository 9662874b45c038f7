// A memory fence in every thread of the process, at the price of a system call
// for who asks and of nothing for the others.
//
// It is the expensive half of an asymmetric fence: a thread that does something
// often stores, and then loads, with no more than a compiler fence between the
// two; one that seldom does something else has the processors fenced. Of its own
// store before the call and the other's store before its load, one is then seen.
//
// Thread-safety: any thread.
// Source: Dice, Huang and Yang 2001, by membarrier(2).
#ifndef QUARRY_TCACHE_PROCESS_FENCE_H_
#define QUARRY_TCACHE_PROCESS_FENCE_H_

namespace quarry {

// Whether there is such a fence. The first call in a process finds out, which is
// fast while the process has one thread.
bool CanFenceAllThreads();

// Requires CanFenceAllThreads(), in this process or in a parent of it. No system call
// where there is one thread.
void FenceAllThreads();

}  // namespace quarry

#endif  // QUARRY_TCACHE_PROCESS_FENCE_H_
