#include "arena/process_arenas.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <new>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "arena/numa.h"
#include "arena/settings.h"

namespace quarry {

constinit MetadataPool metadata_pool(OsPages());
constinit HugeBlocks huge_blocks(OsPages(), metadata_pool);

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

ABSL_ATTRIBUTE_NOINLINE void MakeArenas(size_t count) {
  LockHolder hold(arenas_lock);
  for (size_t i = arenas_made.load(std::memory_order_relaxed); i < count; ++i) {
    new (&places[i].arena)
        Arena(OsPages(), metadata_pool, static_cast<uint32_t>(i));
    // Pairs with the acquire in ArenasMade().
    arenas_made.store(i + 1, std::memory_order_release);
  }
}

constinit std::atomic<size_t> arena_count{0};
// Of each node; nodes beyond them share.
constinit std::array<std::atomic<size_t>, kMaxArenas> turns{};

size_t Processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails where there are more processors than the set has bits for.
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return kMaxArenas;
  return static_cast<size_t>(CPU_COUNT(&set));
}

}  // namespace

Arena& ArenaAt(size_t index) {
  if (ABSL_PREDICT_FALSE(index >= ArenasMade())) MakeArenas(index + 1);
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
  // Two first calls at once may see different affinities; one of them wins.
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

Arena& NextArena() {
  const size_t node = numa.CurrentNode();
  const size_t turn =
      turns[node % kMaxArenas].fetch_add(1, std::memory_order_relaxed);
  // Whatever there is to choose from, which takes some system calls to know.
  if (node == 0 && turn == 0) return ArenaAt(0);
  const size_t count = ArenaCount();
  const size_t nodes = numa.nodes();
  if (node >= count) return ArenaAt(turn % count);
  // Arenas node, node + nodes, node + 2 * nodes, ... below count.
  const size_t arenas_of_node = (count - node + nodes - 1) / nodes;
  return ArenaAt(node + turn % arenas_of_node * nodes);
}

}  // namespace quarry
