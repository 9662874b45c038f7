// What a thread finds without a call: its cache.
#ifndef QUARRY_TCACHE_THREAD_STATE_H_
#define QUARRY_TCACHE_THREAD_STATE_H_

#include <cstdint>

#include "arena/page_map.h"

namespace quarry {

class ThreadCache;

// The tag of no cache, with which no slab's differs by less than kOwnerUnit.
constexpr Tag kNobodysTag = kNobody - kOwnerUnit;

// What a thread has in thread-local storage. A thread without a cache points
// at `no_cache`, whose magazines are empty, and its tag matches no slab: its
// first malloc() and any free() take the slow path without a test of their own.
struct ThreadState {
  ThreadCache* cache;
  // The cache's address less `tag`: the magazine of a tag is found by one addition
  // to it. The next malloc waits for that address, and for nothing else here.
  void* origin;
  Tag tag;
  // The thread gave its cache up on exit, and gets no other.
  bool exited;
  // Remote frees of a thread without a cache.
  uint16_t remote_frees;
  // `tag` once the thread knows that C++'s sized delete may do without the program's
  // own operator delete; kNobodysTag until then.
  Tag delete_tag;

  void SetTag(Tag new_tag) {
    tag = new_tag;
    delete_tag = kNobodysTag;
    origin = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(cache) -
                                     new_tag);
  }
};

// Initial-exec: one load and no call. A few bytes fit into what the loader sets
// aside for libraries opened late.
extern thread_local constinit ThreadState thread_state
    __attribute__((tls_model("initial-exec"), visibility("hidden")));

}  // namespace quarry

#endif  // QUARRY_TCACHE_THREAD_STATE_H_
