// The least that malloc and free of a thread's own block can cost: a pop from
// and a push onto a list in thread-local storage, behind calls into a shared
// library as those of malloc are. No size is looked at and no pointer checked.

#ifndef TOOLS_BENCHMARKS_FAST_PATH_LIMIT_H_
#define TOOLS_BENCHMARKS_FAST_PATH_LIMIT_H_

#include <stddef.h>

extern "C" {

// Thread-safety: any thread; blocks do not go from one to another.
__attribute__((visibility("default"))) void* LimitPop(size_t bytes);
__attribute__((visibility("default"))) void LimitPush(void* block);

}  // extern "C"

#endif  // TOOLS_BENCHMARKS_FAST_PATH_LIMIT_H_
