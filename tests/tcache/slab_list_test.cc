#include "tcache/slab_list.h"

#include <algorithm>
#include <deque>
#include <random>

#include "gtest/gtest.h"
#include "tests/arena/test_seed.h"
#include "tests/tcache/test_slab.h"

namespace quarry {
namespace {

TEST(SlabList, RemovesAtEveryPlace) {
  TestSlab slabs[3] = {TestSlab(kFirstClass), TestSlab(kFirstClass),
                       TestSlab(kFirstClass)};
  for (size_t removed = 0; removed < 3; ++removed) {
    SlabList list;
    EXPECT_TRUE(list.IsEmpty());
    for (TestSlab& slab : slabs) list.PushFront(&*slab);
    EXPECT_FALSE(list.IsEmpty());
    EXPECT_EQ(list.first(), &*slabs[2]);
    list.Remove(&*slabs[removed]);
    for (size_t i = 3; i-- > 0;) {
      if (i == removed) continue;
      EXPECT_EQ(list.PopFront(), &*slabs[i]);
    }
    EXPECT_EQ(list.PopFront(), nullptr);
    EXPECT_TRUE(list.IsEmpty());
  }
}

TEST(SlabList, IsAsADequeOfSlabs) {
  std::mt19937_64 random(TestSeed());
  constexpr size_t kSlabs = 5;
  TestSlab slabs[kSlabs] = {TestSlab(kFirstClass), TestSlab(kFirstClass),
                            TestSlab(kFirstClass), TestSlab(kFirstClass),
                            TestSlab(kFirstClass)};
  std::deque<Slab*> expected;
  SlabList list;
  for (int step = 0; step < 20000; ++step) {
    Slab* const slab = &*slabs[random() % kSlabs];
    const auto place = std::find(expected.begin(), expected.end(), slab);
    if (random() % 3 == 0 && !expected.empty()) {
      list.MoveFirstToBack();
      expected.push_back(expected.front());
      expected.pop_front();
    } else if (place == expected.end()) {
      list.PushFront(slab);
      expected.push_front(slab);
    } else {
      list.Remove(slab);
      expected.erase(place);
    }
    std::deque<Slab*> found;
    list.ForEach([&](Slab* s) { found.push_back(s); });
    ASSERT_EQ(found, expected) << step;
  }
}

}  // namespace
}  // namespace quarry
