// Linked with //alloc:malloc: operator delete is Quarry's in this process.
#include <errno.h>
#include <stddef.h>

#include <iterator>
#include <new>

#include "alloc/quarry.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tests/alloc/statistics_now.h"

namespace quarry {
namespace {

using std::align_val_t;
using std::nothrow;

// Its thread-local storage would count as live.
const bool no_thread = (settings.maintenance = false, true);

TEST(OperatorDelete, EveryFormFrees) {
  constexpr align_val_t kAlignment{64};
  using Form = void (*)(size_t bytes);
  constexpr Form kForms[] = {
      [](size_t bytes) { ::operator delete(::operator new(bytes)); },
      [](size_t bytes) { ::operator delete(::operator new(bytes), bytes); },
      [](size_t bytes) { ::operator delete(::operator new(bytes), nothrow); },
      [](size_t bytes) {
        ::operator delete(::operator new(bytes, kAlignment), kAlignment);
      },
      [](size_t bytes) {
        ::operator delete(::operator new(bytes, kAlignment), bytes, kAlignment);
      },
      [](size_t bytes) {
        ::operator delete(::operator new(bytes, kAlignment), kAlignment, nothrow);
      },
      [](size_t bytes) { ::operator delete[](::operator new[](bytes)); },
      [](size_t bytes) { ::operator delete[](::operator new[](bytes), bytes); },
      [](size_t bytes) { ::operator delete[](::operator new[](bytes), nothrow); },
      [](size_t bytes) {
        ::operator delete[](::operator new[](bytes, kAlignment), kAlignment);
      },
      [](size_t bytes) {
        ::operator delete[](::operator new[](bytes, kAlignment), bytes, kAlignment);
      },
      [](size_t bytes) {
        ::operator delete[](::operator new[](bytes, kAlignment), kAlignment, nothrow);
      },
  };
  for (size_t form = 0; form < std::size(kForms); ++form) {
    for (const size_t bytes : {0, 1, 24, 100, 5000, 100000, 5000000}) {
      const size_t live_bytes = LiveBytes();
      kForms[form](bytes);
      EXPECT_EQ(LiveBytes(), live_bytes) << "form " << form << " of " << bytes;
    }
  }
  ::operator delete(nullptr);
  ::operator delete(nullptr, 8);
  ::operator delete(nullptr, align_val_t{64});
  ::operator delete(nullptr, 8, align_val_t{64});
  quarry_verify();
}

TEST(OperatorDelete, ErrnoIsKept) {
  int* block = new int;
  errno = EDOM;
  delete block;
  EXPECT_EQ(errno, EDOM);
}

TEST(OperatorDeleteDeathTest, ASizeOfAnotherClassAborts) {
  void* block = ::operator new(40);
  EXPECT_DEATH(::operator delete(block, 4000),
               "quarry: sized free of 0x[0-9a-f]+ as 4000 bytes, but its block "
               "has 48 .QUARRY_OPTIONS=check_sizes:0 allows it., aborting");
  ::operator delete(block, 40);
}

}  // namespace
}  // namespace quarry
