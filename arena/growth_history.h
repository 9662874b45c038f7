// Whether what an arena grows by will be filled.
#ifndef QUARRY_ARENA_GROWTH_HISTORY_H_
#define QUARRY_ARENA_GROWTH_HISTORY_H_

#include <cstdint>

#include "arena/filling.h"
#include "arena/page_source.h"

namespace quarry {

// Guesses what will become of the ranges of a huge page each that an arena grows into, by
// what became of an earlier one.
//
// A huge page makes all of a range resident with its first touch, so it is for what will be
// filled. Slabs of a thread that has many will be (ThreadCache::FillingOfNext). Of page
// runs, which may be buffers that stay empty, and of many threads' slabs, of which each has
// a few blocks in use, nobody can say so. But a program goes on as it has begun. So of
// each five ranges one is a sample: it lies on small pages, and when the next sample is
// due, the system is asked how much of it is resident.
//
//   range      1       2     3     4     5     6          7     8     9     10    11
//   pages      small   small small small small small      huge  huge  huge  huge  small
//              sample                          next one                           next one
//                                              looks at 1: filled                 looks at 6
//
// A sample has the time in which four more ranges are begun to be filled itself: what is
// asked for now is written to a little later, and a slab's blocks one by one. In a heap
// that grows to 160 MiB under eight threads a range is half resident when the next one
// begins, and 15/16 four ranges later.
//
// Thread-safety: none; an arena's lock guards its own.
// Cost: two system calls for each 10 MiB.
class GrowthHistory {
 public:
  // How many ranges one sample speaks for, itself included.
  static constexpr uint32_t kRangesOfSample = 5;

  // What to expect of the range [start, start + kHugePageBytes), of which nothing was ever
  // touched, and which is begun now. `source` is what the pages are from. What was a
  // sample may be another mapping by now, or free again: a guess is all that it is.
  [[nodiscard]] Filling Expect(PageSource& source, void* start);

 private:
  void* sample_ = nullptr;
  uint32_t ranges_since_sample_ = kRangesOfSample - 1;
  // Of those until the next sample.
  Filling expected_ = Filling::kUnknown;
};

}  // namespace quarry

#endif  // QUARRY_ARENA_GROWTH_HISTORY_H_
