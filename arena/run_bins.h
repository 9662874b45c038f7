#ifndef QUARRY_ARENA_RUN_BINS_H_
#define QUARRY_ARENA_RUN_BINS_H_

#include <cstddef>
#include <cstdint>

#include "arena/run.h"

namespace quarry {

// The free runs of one arena by size: what finds the best fit.
//
// Small bins hold runs of exactly 1 to 32 pages, one bin for each size. Tree
// bins hold the larger ones, two bins to each power of two:
//
//   small bin     0   1   2  ...  31
//   pages         1   2   3  ...  32
//
//   tree bin      0    1    2    3    4    5    6   ...  31
//   pages from   33   48   64   96  128  192  256   ...  3 * 2^19, all above
//
// A tree bin is a bitwise trie over the bits of `pages` below the bin's own:
// the child to follow at depth d is the d-th of these bits. A node may have
// any size of its subtree, so the trie needs no inner nodes of its own and no
// balancing; its depth is at most the number of bits.
//
// Runs of one size form a ring. In a small bin the head is the bin's; in a
// tree exactly one of the ring is the node, and only it has a parent:
//
//           node ---- same size ---- same size ---.
//          /    \  ^______________________________|
//     child[0] child[1]
//
// Both maps have bit i set iff bin i holds a run, so that the next non-empty
// bin is one count of trailing zeros away.
//
// A ring hands out its lower-addressed runs first, as far as O(1) can tell.
//
// Thread-safety: none; under the arena's lock.
// Invariant: bit i of a map is set iff bin i is not empty; every run is filed
//   under its size, and all below child[b] have bit b at their depth.
// Cost: Insert, Remove and BestFit are O(number of bits of a size), with no
//   search through runs of equal size.
// Size: 64 pointers and two maps.
// Source: Doug Lea, dlmalloc 2.8 (small bins, tree bins, bin maps).
class RunBins {
 public:
  static constexpr uint32_t kSmallBins = 32;
  static constexpr uint32_t kTreeBins = 32;

  // Runs of at most so many pages have a bin for their exact size.
  static constexpr uint32_t kMostSmallPages = kSmallBins;

  constexpr RunBins() = default;
  RunBins(const RunBins&) = delete;
  RunBins& operator=(const RunBins&) = delete;

  void Insert(Run* run);
  void Remove(Run* run);

  // A smallest run of at least `pages` pages, which stays in its bin, or
  // nullptr if none is large enough.
  Run* BestFit(uint32_t pages) const;

  // A run in which `pages` pages fit at a multiple of `alignment`, a power of
  // two. A smallest such run within a bounded search: an exact hole among
  // many crooked ones may be missed for a larger run, which always fits.
  Run* BestAlignedFit(uint32_t pages, size_t alignment) const;

  // Aborts if an invariant is broken. Stores what it counted.
  void Verify(size_t* runs, size_t* pages) const;

  // The tree bin of runs of `pages` > kMostSmallPages pages.
  static uint32_t TreeBinOf(uint32_t pages);

 private:
  // How far to look among runs that may be crooked.
  static constexpr int kAlignedSizes = 8;
  static constexpr int kAlignedRuns = 8;

  static uint32_t TrieBitsOf(uint32_t pages);

  void InsertSmall(Run* run);
  void RemoveSmall(Run* run);
  void InsertTree(Run* run);
  void RemoveTree(Run* run);
  Run* BestInTree(uint32_t pages) const;
  static Run* SmallestIn(Run* node);
  static void VerifyNode(const Run* node, uint32_t bin, uint32_t depth,
                         uint32_t path, size_t* runs, size_t* pages);

  uint32_t small_map_ = 0;
  uint32_t tree_map_ = 0;
  Run* small_[kSmallBins] = {};  // A member of the ring, or nullptr.
  Run* tree_[kTreeBins] = {};    // The root, or nullptr.
};

// Where in `run` the first `pages` pages at a multiple of `alignment` start,
// or nullptr if they do not fit.
char* AlignedPlace(const Run* run, uint32_t pages, size_t alignment);

}  // namespace quarry

#endif  // QUARRY_ARENA_RUN_BINS_H_
