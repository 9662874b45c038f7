// The processors that this process may use.
//
// Programs give threads a processor each, so what one thread may use tells little. What
// counts is what the process had when its first thread joined an arena (RememberProcessors()).
//
// Thread-safety: any thread. errno is preserved.
// Cost: RememberProcessors() one system call, RunOnAllProcessors() two or three.
#ifndef QUARRY_ARENA_PROCESSORS_H_
#define QUARRY_ARENA_PROCESSORS_H_

#include <cstddef>

namespace quarry {

// Asks the system, the first time.
void RememberProcessors();

// How many there are; SIZE_MAX where the system does not say. Asks the system if nobody
// has.
size_t Processors();

// Lets the calling thread run where the main thread may, which follows what an
// administrator or the program says of the whole process; where that is bound to one
// processor, on all that there are. Without effect where the system does not say which these
// are.
void RunOnAllProcessors();

}  // namespace quarry

#endif  // QUARRY_ARENA_PROCESSORS_H_
