#ifndef QUARRY_TESTS_TCACHE_MARK_FREED_H_
#define QUARRY_TESTS_TCACHE_MARK_FREED_H_

#include <cstddef>

#include "tcache/block_word.h"
#include "tcache/remote_bitmap.h"
#include "tcache/slab.h"

namespace quarry {

// What a remote free does before it passes the token on, if it has got it.
[[nodiscard]] inline RemoteBitmap::Mark MarkFreed(Slab* slab, size_t block) {
  return slab->remote.MarkWord(
      Slab::RemoteWords(slab, Slab::kGeometry[slab->size_class()]), block / 64,
      BlockWord::BitOf(block));
}

}  // namespace quarry

#endif  // QUARRY_TESTS_TCACHE_MARK_FREED_H_
