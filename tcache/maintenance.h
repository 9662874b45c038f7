// Memory that goes back to the system while the program does something else,
// or nothing: the allocator's own thread.
//
// The rooms note work when a mebibyte is free and dirty, or one of many threads has
// its share of that (maintenance_signal.h), and when a thread has freed what another
// allocated.
// The next slow path that holds no lock starts the thread, which then ticks
// four times in settings.decay_ms: what has been free for longer goes back.
// When a tick leaves nothing behind, the thread sleeps until work is noted.
//
//   NoteWork -> pause -> tick -> pause -> tick -> ... nothing left: asleep
//                 ^                                        |
//                 +------------- NoteWork -----------------+
//
// Asleep for half a second, it ends, and is started anew when there is work: a
// process whose main thread has left by pthread_exit() ends with its last
// thread.
//
// What stays dirty although it was due, because the system refuses to take
// locked memory, would keep it ticking: after some ticks in vain it sleeps
// between them, each time for twice as long.
//
// Where there is no thread, by settings.maintenance or because it could not be
// started, slow paths make the ticks, in steps that take no call long, so that
// only a process without calls keeps its memory. The rooms below note work all
// the same: the first slow path that would start the thread turns it off.
//
// The thread takes no signals, allocates nothing and has no cache. It touches
// only objects without destructors, so it may run while the process exits. A
// fork waits for the locks that it holds; the child has no such thread, and
// starts its own when there is work.
//
// Thread-safety: all functions on any thread that holds no lock.
#ifndef QUARRY_TCACHE_MAINTENANCE_H_
#define QUARRY_TCACHE_MAINTENANCE_H_

#include <cstdint>

#include "absl/base/optimization.h"
#include "arena/maintenance_signal.h"
#include "tcache/maintenance_pace.h"

namespace quarry {

// One round of what the thread does, at the time `now_ms` of NowMs(). Above the
// soft limit, nothing is too young.
TickResult MaintenanceTick(uint32_t now_ms);

// Whether `caller`, the code that called free(), may be glibc's loader. That frees
// the thread-local storage of threads that have exited under a lock, which
// pthread_create() takes; and that of a thread that is about to end, whose key
// destructors have run. What it allocates, it allocates without that lock.
bool MayBeLoader(const void* caller);

// Starts the thread, or makes a step of a tick where there is none. `caller` is the code
// that called libc's free(), and null on the way of any other call.
void MaintainOnSlowPath(const void* caller);

// To be called at the end of a slow path, without a lock.
inline void StartMaintenanceIfWanted(const void* caller = nullptr) {
  if (ABSL_PREDICT_FALSE(maintenance_signal.IsWanted() ||
                         maintenance_signal.IsOff())) {
    MaintainOnSlowPath(caller);
  }
}

}  // namespace quarry

#endif  // QUARRY_TCACHE_MAINTENANCE_H_
