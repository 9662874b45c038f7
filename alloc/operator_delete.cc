// Every replaceable form of C++'s operator delete.
//
// Compiled without exceptions, as operator new cannot be: a noexcept function
// that calls what might throw cannot end in a jump.
//
// Thread-safety: any number of threads at once.
// Errors: forms that are told a size or an alignment use it; a size of another
//   size class aborts.
// Source: ISO C++20 [new.delete].
#include <stddef.h>

#include <new>

#include "alloc/heap.h"
#include "alloc/quarry.h"

QUARRY_PUBLIC void operator delete(void* block) noexcept {
  quarry::Deallocate(block);
}

QUARRY_PUBLIC void operator delete(void* block, size_t bytes) noexcept {
  quarry::DeallocateSized(block, bytes);
}

QUARRY_PUBLIC void operator delete(void* block,
                                   const std::nothrow_t&) noexcept {
  quarry::Deallocate(block);
}

QUARRY_PUBLIC void operator delete(void* block, std::align_val_t) noexcept {
  quarry::Deallocate(block);
}

QUARRY_PUBLIC void operator delete(void* block, size_t bytes,
                                   std::align_val_t alignment) noexcept {
  quarry::DeallocateAlignedSized(block, bytes, static_cast<size_t>(alignment));
}

QUARRY_PUBLIC void operator delete(void* block, std::align_val_t,
                                   const std::nothrow_t&) noexcept {
  quarry::Deallocate(block);
}

QUARRY_PUBLIC void operator delete[](void* block) noexcept {
  quarry::Deallocate(block);
}

QUARRY_PUBLIC void operator delete[](void* block, size_t bytes) noexcept {
  quarry::DeallocateSized(block, bytes);
}

QUARRY_PUBLIC void operator delete[](void* block,
                                     const std::nothrow_t&) noexcept {
  quarry::Deallocate(block);
}

QUARRY_PUBLIC void operator delete[](void* block, std::align_val_t) noexcept {
  quarry::Deallocate(block);
}

QUARRY_PUBLIC void operator delete[](void* block, size_t bytes,
                                     std::align_val_t alignment) noexcept {
  quarry::DeallocateAlignedSized(block, bytes, static_cast<size_t>(alignment));
}

QUARRY_PUBLIC void operator delete[](void* block, std::align_val_t,
                                     const std::nothrow_t&) noexcept {
  quarry::Deallocate(block);
}
