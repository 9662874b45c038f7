#include "tcache/slab_list.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <vector>

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

class SlabListOfSeveral : public testing::Test {
 protected:
  SlabListOfSeveral() {
    for (int i = 0; i < 6; ++i) slabs_.push_back(std::make_unique<TestSlab>(kFirstClass));
  }

  // The list with those slabs of all, in that order.
  SlabList ListOf(const std::vector<size_t>& numbers) {
    SlabList list;
    for (size_t i = numbers.size(); i-- > 0;) list.PushFront(&**slabs_[numbers[i]]);
    return list;
  }
  std::vector<size_t> NumbersIn(const SlabList& list) {
    std::vector<size_t> numbers;
    list.ForEach([&](Slab* slab) { numbers.push_back(NumberOf(slab)); });
    return numbers;
  }
  size_t NumberOf(const Slab* slab) {
    size_t number = 0;
    while (&**slabs_[number] != slab) ++number;
    return number;
  }

 private:
  std::vector<std::unique_ptr<TestSlab>> slabs_;
};

using Numbers = std::vector<size_t>;

TEST_F(SlabListOfSeveral, MovesWhatIsWanted) {
  for (uint32_t wanted = 0; wanted < 32; ++wanted) {
    SlabList from = ListOf({0, 1, 2, 3, 4});
    SlabList to = ListOf({5});
    from.MoveIf([&](Slab* slab) { return ((wanted >> NumberOf(slab)) & 1) != 0; }, &to);
    Numbers left, moved = {5};
    for (size_t i = 0; i < 5; ++i) {
      if (((wanted >> i) & 1) != 0) {
        moved.insert(moved.begin(), i);
      } else {
        left.push_back(i);
      }
    }
    EXPECT_EQ(NumbersIn(from), left);
    EXPECT_EQ(NumbersIn(to), moved);
  }
}

TEST_F(SlabListOfSeveral, AppendsAnother) {
  for (size_t first = 0; first <= 3; ++first) {
    for (size_t more = 0; more <= 3; ++more) {
      Numbers numbers = {0, 1, 2, 3, 4, 5};
      const auto middle = numbers.begin() + static_cast<ptrdiff_t>(first);
      numbers.resize(first + more);
      SlabList list = ListOf(Numbers(numbers.begin(), middle));
      SlabList other = ListOf(Numbers(middle, numbers.end()));
      list.Append(&other);
      EXPECT_EQ(NumbersIn(list), numbers);
      EXPECT_TRUE(other.IsEmpty());
      // It is whole, backward, too.
      if (list.IsEmpty()) continue;
      list.MoveFirstToBack();
      std::rotate(numbers.begin(), numbers.begin() + 1, numbers.end());
      EXPECT_EQ(NumbersIn(list), numbers);
      while (Slab* slab = list.PopFront()) {
        EXPECT_EQ(NumberOf(slab), numbers.front());
        numbers.erase(numbers.begin());
      }
      EXPECT_TRUE(numbers.empty());
    }
  }
}

}  // namespace
}  // namespace quarry
