// The processors that this process may use.
//
// Programs give threads a processor each, so what one thread may use tells little. What
// counts is what the process had when its first thread joined an arena (RememberProcessors()).
//
// Thread-safety: any thread. errno is preserved.
// Cost: RememberProcessors() and RunOnAllProcessors() one system call each.
#ifndef QUARRY_ARENA_PROCESSORS_H_
#define QUARRY_ARENA_PROCESSORS_H_

#include <cstddef>

namespace quarry {

// Asks the system, the first time.
void RememberProcessors();

// How many there are; SIZE_MAX where the system does not say. Asks the system if nobody
// has.
size_t Processors();

// Lets the calling thread run on all of them that the system still allows. Without effect
// where it did not say which they are.
void RunOnAllProcessors();

}  // namespace quarry

#endif  // QUARRY_ARENA_PROCESSORS_H_
