#include "arena/run_bins.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "arena/report.h"

namespace quarry {
namespace {

// Small bins come first in Run::bin, then tree bins.
constexpr uint32_t kFirstTreeBin = RunBins::kSmallBins;

constexpr uint32_t Bit(uint32_t bin) { return 1u << bin; }

// The bins above `bin`, which may be the last.
constexpr uint32_t BitsAbove(uint32_t bin) {
  return ~(Bit(bin) | (Bit(bin) - 1));
}

constexpr uint32_t SmallBinOf(uint32_t pages) { return pages - 1; }

void LinkAfter(Run* position, Run* run) {
  run->previous = position;
  run->next = position->next;
  position->next->previous = run;
  position->next = run;
}

void LinkAlone(Run* run) { run->next = run->previous = run; }

void Unlink(Run* run) {
  run->previous->next = run->next;
  run->next->previous = run->previous;
}

}  // namespace

char* AlignedPlace(const Run* run, uint32_t pages, size_t alignment) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(run->start);
  const size_t skipped = -start & (alignment - 1);
  const size_t run_bytes = run->bytes();
  if (skipped > run_bytes || run_bytes - skipped < pages * PageBytes()) {
    return nullptr;
  }
  return run->start + skipped;
}

// Two bins to a power of two: its exponent, and the bit below the highest.
uint32_t RunBins::TreeBinOf(uint32_t pages) {
  const uint32_t exponent = static_cast<uint32_t>(std::bit_width(pages)) - 1;
  const uint32_t upper_half = pages >> (exponent - 1) & 1;
  const uint32_t first_exponent = std::bit_width(kMostSmallPages) - 1;
  return std::min(2 * (exponent - first_exponent) + upper_half, kTreeBins - 1);
}

// The bits of `pages` that decide the way through its bin's trie, the first
// one highest. All sizes of a bin agree in the two bits above; the last bin
// holds all exponents that are left, so there every bit decides.
uint32_t RunBins::TrieBitsOf(uint32_t pages) {
  if (TreeBinOf(pages) == kTreeBins - 1) return pages;
  const int exponent = static_cast<int>(std::bit_width(pages)) - 1;
  return pages << (32 - (exponent - 1));
}

void RunBins::Insert(Run* run) {
  if (run->pages <= kMostSmallPages) return InsertSmall(run);
  InsertTree(run);
}

void RunBins::Remove(Run* run) {
  if (run->bin < kFirstTreeBin) return RemoveSmall(run);
  RemoveTree(run);
}

// The head is handed out first: a run below it takes its place, any other goes
// to the end of the queue.
void RunBins::InsertSmall(Run* run) {
  const uint32_t bin = SmallBinOf(run->pages);
  run->bin = static_cast<uint8_t>(bin);
  Run*& head = small_[bin];
  if (head == nullptr) {
    LinkAlone(run);
    small_map_ |= Bit(bin);
    head = run;
    return;
  }
  LinkAfter(head->previous, run);
  if (run->start < head->start) head = run;
}

void RunBins::RemoveSmall(Run* run) {
  const uint32_t bin = run->bin;
  Run*& head = small_[bin];
  if (run->next == run) {
    small_map_ &= ~Bit(bin);
    head = nullptr;
    return;
  }
  Unlink(run);
  if (head == run) head = run->next;
}

void RunBins::InsertTree(Run* run) {
  const uint32_t bin = TreeBinOf(run->pages);
  run->bin = static_cast<uint8_t>(kFirstTreeBin + bin);
  run->child[0] = run->child[1] = nullptr;
  Run* node = tree_[bin];
  if (node == nullptr) {
    LinkAlone(run);
    run->parent = run;
    tree_[bin] = run;
    tree_map_ |= Bit(bin);
    return;
  }
  uint32_t bits = TrieBitsOf(run->pages);
  while (node->pages != run->pages) {
    Run*& child = node->child[bits >> 31];
    bits <<= 1;
    if (child == nullptr) {
      LinkAlone(run);
      run->parent = node;
      child = run;
      return;
    }
    node = child;
  }
  // The one behind the node is handed out first: a lower run goes there, any
  // other to the end of the queue.
  run->parent = nullptr;
  LinkAfter(run->start < node->next->start ? node : node->previous, run);
}

void RunBins::RemoveTree(Run* run) {
  const uint32_t bin = run->bin - kFirstTreeBin;
  if (run->parent == nullptr) {
    Unlink(run);
    return;
  }
  // A node goes. Its heir takes over its place: one of the same size if there
  // is one, else any leaf below it, which satisfies every bit on the way.
  Run* heir = nullptr;
  if (run->next != run) {
    heir = run->next;
    Unlink(run);
  } else if (run->child[0] != nullptr || run->child[1] != nullptr) {
    Run** link = &run->child[run->child[1] != nullptr];
    while ((*link)->child[0] != nullptr || (*link)->child[1] != nullptr) {
      link = &(*link)->child[(*link)->child[1] != nullptr];
    }
    heir = *link;
    *link = nullptr;
  }
  Run* const parent = run->parent;
  if (parent == run) {
    tree_[bin] = heir;
    if (heir == nullptr) tree_map_ &= ~Bit(bin);
  } else {
    parent->child[parent->child[1] == run] = heir;
  }
  if (heir == nullptr) return;
  heir->parent = parent == run ? heir : parent;
  for (int side = 0; side < 2; ++side) {
    heir->child[side] = run->child[side];
    if (heir->child[side] != nullptr) heir->child[side]->parent = heir;
  }
}

Run* RunBins::BestFit(uint32_t pages) const {
  if (pages <= kMostSmallPages) {
    const uint32_t bins = small_map_ & ~(Bit(SmallBinOf(pages)) - 1);
    if (bins != 0) return small_[std::countr_zero(bins)];
    if (tree_map_ == 0) return nullptr;
    return SmallestIn(tree_[std::countr_zero(tree_map_)]);
  }
  Run* const best = BestInTree(pages);
  if (best != nullptr) return best;
  const uint32_t bins = tree_map_ & BitsAbove(TreeBinOf(pages));
  if (bins == 0) return nullptr;
  return SmallestIn(tree_[std::countr_zero(bins)]);
}

// The best fit in the bin of `pages`. Follows the bits of `pages` and keeps the
// last larger subtree that it passed by: all in it are larger than `pages` and
// smaller than whatever an earlier one holds.
Run* RunBins::BestInTree(uint32_t pages) const {
  Run* best = nullptr;
  Run* larger = nullptr;
  uint32_t bits = TrieBitsOf(pages);
  for (Run* node = tree_[TreeBinOf(pages)]; node != nullptr;) {
    if (node->pages >= pages &&
        (best == nullptr || node->pages < best->pages)) {
      best = node;
      if (node->pages == pages) return best->next;
    }
    const uint32_t bit = bits >> 31;
    bits <<= 1;
    if (bit == 0 && node->child[1] != nullptr) larger = node->child[1];
    node = node->child[bit];
  }
  if (larger != nullptr) {
    Run* const smallest = SmallestIn(larger);
    if (best == nullptr || smallest->pages < best->pages) return smallest;
  }
  return best == nullptr ? nullptr : best->next;
}

// A smallest run of the tree below `node`, which is on its leftmost path.
Run* RunBins::SmallestIn(Run* node) {
  Run* smallest = node;
  while (true) {
    node = node->child[node->child[0] == nullptr];
    if (node == nullptr) return smallest->next;
    if (node->pages < smallest->pages) smallest = node;
  }
}

Run* RunBins::BestAlignedFit(uint32_t pages, size_t alignment) const {
  if (alignment <= PageBytes()) return BestFit(pages);
  // In a run of this size the request fits wherever the run starts.
  const size_t surely = pages + alignment / PageBytes() - 1;
  if (surely != static_cast<uint32_t>(surely)) return nullptr;
  uint32_t size = pages;
  for (int sizes = 0; sizes < kAlignedSizes; ++sizes) {
    Run* const first = BestFit(size);
    if (first == nullptr) return nullptr;
    Run* run = first;
    for (int runs = 0; runs < kAlignedRuns; ++runs) {
      if (AlignedPlace(run, pages, alignment) != nullptr) return run;
      run = run->next;
      if (run == first) break;
    }
    size = first->pages + 1;
  }
  return BestFit(static_cast<uint32_t>(surely));
}

void RunBins::Verify(size_t* runs, size_t* pages) const {
  *runs = 0;
  *pages = 0;
  for (uint32_t bin = 0; bin < kSmallBins; ++bin) {
    QUARRY_CHECK((small_[bin] != nullptr) == ((small_map_ & Bit(bin)) != 0));
    const Run* run = small_[bin];
    if (run == nullptr) continue;
    do {
      QUARRY_CHECK(SmallBinOf(run->pages) == bin);
      QUARRY_CHECK(run->bin == bin);
      QUARRY_CHECK(run->next->previous == run);
      QUARRY_CHECK(run->IsFree());
      ++*runs;
      *pages += run->pages;
      run = run->next;
    } while (run != small_[bin]);
  }
  for (uint32_t bin = 0; bin < kTreeBins; ++bin) {
    QUARRY_CHECK((tree_[bin] != nullptr) == ((tree_map_ & Bit(bin)) != 0));
    if (tree_[bin] == nullptr) continue;
    QUARRY_CHECK(tree_[bin]->parent == tree_[bin]);
    VerifyNode(tree_[bin], bin, 0, 0, runs, pages);
  }
}

// `path` holds the `depth` highest bits that led from the root to the node.
void RunBins::VerifyNode(const Run* node, uint32_t bin, uint32_t depth,
                         uint32_t path, size_t* runs, size_t* pages) {
  QUARRY_CHECK(depth < 32);
  const uint32_t way = depth == 0 ? 0 : ~uint32_t{0} << (32 - depth);
  QUARRY_CHECK((TrieBitsOf(node->pages) & way) == path);
  const Run* run = node;
  do {
    QUARRY_CHECK(run->pages > kMostSmallPages);
    QUARRY_CHECK(run->pages == node->pages);
    QUARRY_CHECK(TreeBinOf(run->pages) == bin);
    QUARRY_CHECK(run->bin == kFirstTreeBin + bin);
    QUARRY_CHECK((run->parent != nullptr) == (run == node));
    QUARRY_CHECK(run->next->previous == run);
    QUARRY_CHECK(run->IsFree());
    ++*runs;
    *pages += run->pages;
    run = run->next;
  } while (run != node);
  for (uint32_t side = 0; side < 2; ++side) {
    const Run* const child = node->child[side];
    if (child == nullptr) continue;
    QUARRY_CHECK(child->parent == node);
    VerifyNode(child, bin, depth + 1, path | side << (31 - depth), runs, pages);
  }
}

}  // namespace quarry
