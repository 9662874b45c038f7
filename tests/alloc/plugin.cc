// What a C++ plug-in of a C program sees of operator new when memory runs out.
// Returns 0, or the number of the expectation that failed.
#include <stddef.h>
#include <stdint.h>

#include <new>

namespace {

volatile size_t impossible = SIZE_MAX / 4;
int handler_calls = 0;

}  // namespace

extern "C" int RunOutOfMemory() {
  std::set_new_handler([] {
    if (++handler_calls == 3) std::set_new_handler(nullptr);
  });
  try {
    ::operator delete(::operator new(impossible));
    return 1;
  } catch (const std::bad_alloc&) {
  }
  if (handler_calls != 3) return 2;
  try {
    ::operator delete(::operator new(impossible, std::align_val_t{64}));
    return 3;
  } catch (const std::bad_alloc&) {
  }
  if (::operator new(impossible, std::nothrow) != nullptr) return 4;
  std::set_new_handler([] { throw std::bad_alloc(); });
  if (::operator new(impossible, std::nothrow) != nullptr) return 5;
  std::set_new_handler(nullptr);
  return 0;
}
