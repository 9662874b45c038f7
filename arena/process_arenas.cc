#include "arena/process_arenas.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <new>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "arena/maintenance_signal.h"
#include "arena/numa.h"
#include "arena/processors.h"
#include "arena/settings.h"

namespace quarry {

constinit MetadataPool metadata_pool(OsPages());
constinit HugeBlocks huge_blocks(OsPages(), metadata_pool);
constinit FillingHistory filling_history(OsPages());

namespace {

// Zero memory, and not pages of the program's file that the loader writes to: an
// arena knows its page source by address.
union ArenaPlace {
  constexpr ArenaPlace() : none() {}
  ~ArenaPlace() = default;

  char none;
  Arena arena;
};
constinit ArenaPlace places[kMaxArenas];

constinit std::atomic<size_t> arenas_made{0};
constinit Lock arenas_lock(LockRank::kArenas);

ABSL_ATTRIBUTE_NOINLINE void MakeArenas(size_t count)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(arenas_lock) {
  for (size_t i = arenas_made.load(std::memory_order_relaxed); i < count; ++i) {
    new (&places[i].arena)
        Arena(OsPages(), metadata_pool, static_cast<uint32_t>(i));
    // Pairs with the acquire in ArenasMade().
    arenas_made.store(i + 1, std::memory_order_release);
  }
}

constinit std::atomic<size_t> arena_count{0};
// How many have joined each arena and not left it.
constinit std::array<size_t, kMaxArenas> threads ABSL_GUARDED_BY(arenas_lock){};
constinit size_t all_threads ABSL_GUARDED_BY(arenas_lock) = 0;

// The first of those with the fewest threads, among arenas node, node + nodes,
// node + 2 * nodes, ... below ArenaCount(); where the node has none, among all.
size_t LeastJoined(size_t node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(arenas_lock) {
  const size_t count = ArenaCount();
  const bool is_any_near = node < count;
  size_t least = is_any_near ? node : 0;
  for (size_t i = least; i < count; i += is_any_near ? numa.nodes() : 1) {
    if (threads[i] < threads[least]) least = i;
  }
  return least;
}

}  // namespace

Arena& ArenaAt(size_t index) {
  if (ABSL_PREDICT_FALSE(index >= ArenasMade())) {
    LockHolder hold(arenas_lock);
    MakeArenas(index + 1);
  }
  return places[index].arena;
}

size_t ArenasMade() { return arenas_made.load(std::memory_order_acquire); }

Lock& ArenasLock() { return arenas_lock; }

size_t ArenaCount() {
  size_t count = arena_count.load(std::memory_order_relaxed);
  if (count != 0) return count;
  const size_t most = settings.arenas_max.load(std::memory_order_relaxed);
  size_t chosen =
      std::clamp<size_t>(most != 0 ? most : Processors(), 1, kMaxArenas);
  // Two first calls at once may choose differently; one of them wins.
  if (!arena_count.compare_exchange_strong(count, chosen,
                                           std::memory_order_relaxed)) {
    chosen = count;
  }
  return chosen;
}

bool IsNear(const Arena& arena) {
  const size_t nodes = numa.nodes();
  return nodes == 1 || arena.index() % nodes == numa.CurrentNode();
}

Arena& JoinArena() {
  const size_t node = numa.CurrentNode();
  LockHolder hold(arenas_lock);
  RememberProcessors();
  size_t chosen = 0;
  // Whatever else there is to choose from, which takes some system calls to know.
  if (node != 0 || threads[0] != 0) chosen = LeastJoined(node);
  ++threads[chosen];
  ++all_threads;
  MakeArenas(chosen + 1);
  // One has the whole of it to begin with.
  if (all_threads > 1) maintenance_signal.SetPlaces(all_threads, ArenasMade());
  return places[chosen].arena;
}

void LeaveArena(const Arena& arena) {
  LockHolder hold(arenas_lock);
  --threads[arena.index()];
  --all_threads;
  maintenance_signal.SetPlaces(all_threads, ArenasMade());
}

}  // namespace quarry
