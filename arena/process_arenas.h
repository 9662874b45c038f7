// The arenas of this process, and what they and the rooms above share.
//
// Threads are spread over about as many arenas as there are processors, so that
// two of them seldom wait for one lock. An arena is chosen for a thread when
// its cache is opened and stays its arena for life: one with the fewest threads,
// so that a thread in the place of one that is gone takes up its memory, too. Where
// memory has several nodes, arena i belongs to node i % nodes, and a thread gets
// one of the node that it runs on then.
//
// An arena is made when a thread first gets it. What goes through all arenas goes
// through those that were made, and a process of one thread touches one.
//
// Thread-safety: everything here may be used on any thread at any time.
#ifndef QUARRY_ARENA_PROCESS_ARENAS_H_
#define QUARRY_ARENA_PROCESS_ARENAS_H_

#include <cstddef>
#include <cstdint>

#include "arena/arena.h"
#include "arena/filling.h"
#include "arena/huge.h"
#include "arena/lock.h"
#include "arena/metadata.h"

namespace quarry {

// More arenas than this would spread free pages too thin; a lock that is taken
// once for a slab serves many processors.
constexpr size_t kMaxArenas = 32;

extern constinit MetadataPool metadata_pool;
extern constinit HugeBlocks huge_blocks;

// Of the large blocks of both.
extern constinit FillingHistory filling_history;

// Makes it if need be, and all below it. Requires index < kMaxArenas.
Arena& ArenaAt(size_t index);

// The arenas that were made are those below this index.
size_t ArenasMade();

// Held while arenas are made; for fork.
Lock& ArenasLock();

// How many arenas threads are spread over: settings.arenas_max, or Processors()
// (processors.h), and kMaxArenas at most. Fixed at the first call, which is not made for
// the first thread.
size_t ArenaCount();

// Whether the arena is one for threads of the node that the calling thread runs
// on now.
bool IsNear(const Arena& arena);

// The arena for a thread that is made now: the first of those of its node, or of
// all where its node has none, that have the fewest threads. It has one more until
// LeaveArena(), which comes when the thread's cache is closed: one that is parked
// still counts.
Arena& JoinArena();
void LeaveArena(const Arena& arena);

}  // namespace quarry

#endif  // QUARRY_ARENA_PROCESS_ARENAS_H_
