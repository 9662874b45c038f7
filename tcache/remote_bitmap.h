// The blocks of one slab that threads other than its owner have freed.
//
//   summary   | 0 0 1 0 1 |        bit w: word w went from empty to not empty
//   words     |w0|w1|w2|w3|w4|     bit i of word w: block 64 * w + i is free
//
// A remote free sets the bit of its block, or those of several blocks in a word
// at once (remote_batch.h). Who finds the word empty sets the word's bit in the
// summary; who finds the summary empty holds the *token*:
// it alone must see to it that the owner learns of the slab, and until the
// owner drains, nobody else has to. A drain takes the summary first and then
// the words that it names.
//
// Thread-safety: MarkWord() on any number of threads at once. Drain() only by
//   the holder of the token, which passes on with the slab: from the thread
//   that got kFirst, through the pending stack, to the owner. DrainAll() and
//   RepairAfterFork() only while no other thread runs.
// Ordering: both read-modify-writes of MarkWord() release, and those of
//   Drain() acquire: whatever the freeing thread last did to a block happens
//   before the block is reused. A thread touches the slab no more after the
//   addition that makes its blocks drainable, unless that gave it the token:
//    - the word was not empty: its blocks are drained with the word, for which
//      another thread sets the summary; the addition to the word is the last.
//    - the word was empty: no drain takes it before the summary names it, and
//      so the block keeps the slab alive until the addition to the summary.
//    - that gave kFirst: no drain happens before the token is passed on.
// Invariant: a word named by the summary is not empty.
// Cost: one locked addition for the blocks that are marked together; a second
//   for the first in a word.
// Errors: a block marked twice between two drains is reported as kAlreadyFree.
// Source: the per-page atomic free list of mimalloc (Leijen, Zorn, de Moura
//   2019), with bits in place of a list, so that no loop retries and a double
//   free shows.
#ifndef QUARRY_TCACHE_REMOTE_BITMAP_H_
#define QUARRY_TCACHE_REMOTE_BITMAP_H_

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/base/optimization.h"
#include "tcache/size_classes.h"

namespace quarry {

class RemoteBitmap {
 public:
  enum class Mark {
    kFirst,        // Recorded; nothing was waiting. The caller has the token.
    kAdded,        // Recorded; the holder of the token will find it.
    kAlreadyFree,  // Not recorded: a block of these was freed before.
  };

  // `words` has room for every block of the slab, all zero.
  explicit RemoteBitmap(std::atomic<uint64_t>* words) : words_(words) {}

  // Records that the blocks 64 * index + i are free for which bit i of `bits` is
  // set; one at least. `words` is what the constructor was given, from a caller
  // who knows it without a look at this line, which other threads write.
  [[nodiscard]] Mark MarkWord(std::atomic<uint64_t>* words, size_t index,
                              uint64_t bits) {
    const uint64_t word = Set(words[index], bits);
    if (ABSL_PREDICT_FALSE((word & bits) != 0)) {
      words[index].fetch_sub(bits, std::memory_order_relaxed);
      return Mark::kAlreadyFree;
    }
    if (word != 0) return Mark::kAdded;
    // The bit of a word that was empty is not in the summary: a drain clears it
    // there before it empties the word.
    const uint64_t summary = Set(summary_, uint64_t{1} << index);
    return summary == 0 ? Mark::kFirst : Mark::kAdded;
  }

  // Calls take(index, word) for each word with marks, and clears it. Gives the
  // token back: the next MarkWord() that finds the summary empty gets it.
  template <typename Take>
  void Drain(Take take) {
    // The summary before its words. The other way round, a block marked
    // between the two would stay behind with no bit in the summary, and no
    // thread would ever be told of it.
    uint64_t summary = summary_.exchange(0, std::memory_order_acq_rel);
    while (summary != 0) {
      const size_t index = static_cast<size_t>(std::countr_zero(summary));
      summary &= summary - 1;
      take(index, words_[index].exchange(0, std::memory_order_acq_rel));
    }
  }

  // Drains the first `words` words whether or not the summary names them: what
  // a fork's child does for marks whose threads stayed behind in the parent.
  template <typename Take>
  void DrainAll(size_t words, Take take) {
    summary_.store(0, std::memory_order_relaxed);
    for (size_t index = 0; index < words; ++index) {
      const uint64_t word = words_[index].load(std::memory_order_relaxed);
      if (word == 0) continue;
      words_[index].store(0, std::memory_order_relaxed);
      take(index, word);
    }
  }

  // The same for a slab whose owner stayed behind as well: the summary names the words with
  // marks again, and without a store where it does, for that would copy the page. Returns
  // whether there are any: the caller then has the token.
  [[nodiscard]] bool RepairAfterFork(size_t words) {
    uint64_t summary = 0;
    for (size_t index = 0; index < words; ++index) {
      if (words_[index].load(std::memory_order_relaxed) != 0) {
        summary |= uint64_t{1} << index;
      }
    }
    if (summary_.load(std::memory_order_relaxed) != summary) {
      summary_.store(summary, std::memory_order_relaxed);
    }
    return summary != 0;
  }

  // In the child of a fork, too: whether any of the first `words` words has marks, or the
  // summary names one.
  bool HasMarks(size_t words) const {
    uint64_t any = summary_.load(std::memory_order_relaxed);
    for (size_t index = 0; index < words; ++index) {
      any |= words_[index].load(std::memory_order_relaxed);
    }
    return any != 0;
  }

  // For Verify() and statistics: exact only while no thread marks.
  bool IsMarked(size_t block) const {
    return (words_[block / 64].load(std::memory_order_relaxed) >>
            (block % 64)) & 1;
  }
  bool IsEmpty() const {
    return summary_.load(std::memory_order_relaxed) == 0;
  }

 private:
  // Sets bits that are not set, and returns what there was before. An addition,
  // which x86 has as one instruction: where the old value is wanted, fetch_or
  // is a loop, which takes the line from its last writer twice. A bit that was
  // set carries into its neighbours until that is taken back; what a drain saw
  // meanwhile matters no more, since the process ends with a report.
  //
  // Acquire as well as release: the holder of the token goes on to read what
  // the last drain and a change of owner left behind.
  static uint64_t Set(std::atomic<uint64_t>& word, uint64_t bit) {
    return word.fetch_add(bit, std::memory_order_acq_rel);
  }

  std::atomic<uint64_t> summary_{0};
  std::atomic<uint64_t>* words_;
};

}  // namespace quarry

#endif  // QUARRY_TCACHE_REMOTE_BITMAP_H_
