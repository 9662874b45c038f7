// Linked with //alloc:malloc: operator delete is Quarry's in this process.
#include <errno.h>
#include <stddef.h>

#include <new>

#include "alloc/quarry.h"
#include "gtest/gtest.h"

namespace quarry {
namespace {

using std::align_val_t;
using std::nothrow;

TEST(OperatorDelete, EveryFormFrees) {
  for (const size_t bytes : {0, 1, 24, 100, 5000, 100000, 5000000}) {
    const align_val_t alignment{64};
    ::operator delete(::operator new(bytes));
    ::operator delete(::operator new(bytes), bytes);
    ::operator delete(::operator new(bytes), nothrow);
    ::operator delete(::operator new(bytes, alignment), alignment);
    ::operator delete(::operator new(bytes, alignment), bytes, alignment);
    ::operator delete(::operator new(bytes, alignment), alignment, nothrow);
    ::operator delete[](::operator new[](bytes));
    ::operator delete[](::operator new[](bytes), bytes);
    ::operator delete[](::operator new[](bytes), nothrow);
    ::operator delete[](::operator new[](bytes, alignment), alignment);
    ::operator delete[](::operator new[](bytes, alignment), bytes, alignment);
    ::operator delete[](::operator new[](bytes, alignment), alignment, nothrow);
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
