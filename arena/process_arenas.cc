#include "arena/process_arenas.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "arena/numa.h"
#include "arena/settings.h"

namespace quarry {

constinit MetadataPool metadata_pool(OsPages());
constinit HugeBlocks huge_blocks(OsPages(), metadata_pool);

namespace {

template <size_t... kIndex>
constexpr std::array<Arena, sizeof...(kIndex)> MakeArenas(
    std::index_sequence<kIndex...>) {
  return {Arena(OsPages(), metadata_pool, kIndex)...};
}

constinit std::array<Arena, kMaxArenas> arenas =
    MakeArenas(std::make_index_sequence<kMaxArenas>());

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

Arena& ArenaAt(size_t index) { return arenas[index]; }

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

Arena& NextArena() {
  const size_t count = ArenaCount();
  const size_t nodes = numa.nodes();
  const size_t node = nodes == 1 ? 0 : numa.CurrentNode();
  const size_t turn =
      turns[node % kMaxArenas].fetch_add(1, std::memory_order_relaxed);
  if (node >= count) return arenas[turn % count];
  // Arenas node, node + nodes, node + 2 * nodes, ... below count.
  const size_t arenas_of_node = (count - node + nodes - 1) / nodes;
  return arenas[node + turn % arenas_of_node * nodes];
}

}  // namespace quarry
