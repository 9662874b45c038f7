// The arenas of this process, and what they and the rooms above share.
//
// Threads are spread over about as many arenas as there are processors, so that
// two of them seldom wait for one lock. An arena is chosen for a thread when
// its cache is made and stays its arena for life. Where memory has several
// nodes, arena i belongs to node i % nodes, and a thread gets one of the node
// that it runs on then.
//
// Thread-safety: everything here may be used on any thread at any time.
#ifndef QUARRY_ARENA_PROCESS_ARENAS_H_
#define QUARRY_ARENA_PROCESS_ARENAS_H_

#include <cstddef>
#include <cstdint>

#include "arena/arena.h"
#include "arena/huge.h"
#include "arena/metadata.h"

namespace quarry {

// More arenas than this would spread free pages too thin; a lock that is taken
// once for a slab serves many processors.
constexpr size_t kMaxArenas = 32;

extern constinit MetadataPool metadata_pool;
extern constinit HugeBlocks huge_blocks;

// Requires index < kMaxArenas.
Arena& ArenaAt(size_t index);

// How many arenas threads are spread over: settings.arenas_max, or the number
// of processors that this process may run on. Fixed at the first call.
size_t ArenaCount();

// The arena for a thread that is made now: those of its node in turn, or all
// where its node has none.
Arena& NextArena();

}  // namespace quarry

#endif  // QUARRY_ARENA_PROCESS_ARENAS_H_
