#ifndef QUARRY_TESTS_TCACHE_TEST_SLAB_H_
#define QUARRY_TESTS_TCACHE_TEST_SLAB_H_

#include <cstddef>
#include <vector>

#include "arena/page_map.h"
#include "arena/filling.h"
#include "arena/process_arenas.h"
#include "gtest/gtest.h"
#include "tcache/slab.h"

namespace quarry {

// A slab that nobody owns but the test.
class TestSlab {
 public:
  static constexpr size_t kAll = 1 << 20;

  explicit TestSlab(SizeClass size_class,
                    Filling filling = Filling::kUnknown) {
    slab_ = Slab::Make(&ArenaAt(0), size_class, filling);
    PageMap::Set(slab_->start(), kSlabBytes,
                 static_cast<Tag>(kNobody | size_class * sizeof(Magazine)),
                 slab_);
  }
  ~TestSlab() {
    for (size_t block = 0; block < slab_->blocks(); ++block) {
      (void)slab_->PutBlock(block);
    }
    Slab::Return(slab_);
  }

  Slab& operator*() { return *slab_; }
  Slab* operator->() { return slab_; }

  // Up to `wanted` blocks, in the order in which they are served.
  std::vector<char*> Take(size_t wanted) {
    BlockList list;
    const size_t count = slab_->TakeBlocks(wanted, &list);
    std::vector<char*> blocks;
    for (FreeBlock* block = list.Finish(); block != nullptr;
         block = block->next) {
      blocks.push_back(reinterpret_cast<char*>(block));
    }
    EXPECT_EQ(blocks.size(), count);
    EXPECT_LE(blocks.size(), wanted);
    return blocks;
  }

  // All blocks, a page at a time.
  std::vector<char*> TakeAll() {
    std::vector<char*> all;
    while (slab_->free_blocks() > 0) {
      const std::vector<char*> some = Take(kAll);
      EXPECT_FALSE(some.empty());
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }

 private:
  Slab* slab_;
};

}  // namespace quarry

#endif  // QUARRY_TESTS_TCACHE_TEST_SLAB_H_
