// Every replaceable form of C++'s operator delete.
//
// Compiled without exceptions, as operator new cannot be: a noexcept function
// that calls what might throw cannot end in a jump.
//
// Thread-safety: any number of threads at once.
// Errors: forms that are told a size or an alignment use it; a size of another
//   size class aborts. Not where the program has a basic form of its own.
// Source: ISO C++20 [new.delete].
#include <stddef.h>

#include <new>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "alloc/heap.h"
#include "alloc/operator_forms.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

using Delete = void(void*) noexcept;
using DeleteAligned = void(void*, std::align_val_t) noexcept;

Delete OwnDelete __attribute__((alias("_ZdlPv")));
Delete OwnArrayDelete __attribute__((alias("_ZdaPv")));
DeleteAligned OwnDeleteAligned __attribute__((alias("_ZdlPvSt11align_val_t")));
DeleteAligned OwnArrayDeleteAligned
    __attribute__((alias("_ZdaPvSt11align_val_t")));

bool AllAreOwn() {
  return IsOwn<Delete>(&::operator delete, OwnDelete) &&
         IsOwn<Delete>(&::operator delete[], OwnArrayDelete) &&
         IsOwn<DeleteAligned>(&::operator delete, OwnDeleteAligned) &&
         IsOwn<DeleteAligned>(&::operator delete[], OwnArrayDeleteAligned);
}

// Whether sized deletes need no form of the program's; the thread then remembers it.
bool TryEnableSizedDelete() {
  if (!AllAreOwn()) return false;
  ThreadCache::EnableSizedDelete();
  return true;
}

// `basic` is the form without a size.
template <Delete* basic>
ABSL_ATTRIBUTE_NOINLINE void DeleteSizedSlow(void* block, size_t bytes) {
  if (ABSL_PREDICT_TRUE(ThreadCache::SizedDeleteIsEnabled())) {
    return DeallocateSizedSlow(block, bytes);
  }
  if (!TryEnableSizedDelete()) return basic(block);
  return DeallocateSized(block, bytes);
}

template <Delete* basic>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void DeleteSized(void* block,
                                                     size_t bytes) {
  Magazine* magazine;
  if (ABSL_PREDICT_FALSE(
          !ThreadCache::FindMagazineForDelete(block, &magazine))) {
    return DeleteSizedSlow<basic>(block, bytes);
  }
  return DeallocateSizedTo(magazine, block, bytes);
}

template <DeleteAligned* basic>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline void DeleteAlignedSized(
    void* block, size_t bytes, std::align_val_t alignment) {
  if (ABSL_PREDICT_FALSE(!ThreadCache::SizedDeleteIsEnabled()) &&
      !TryEnableSizedDelete()) {
    return basic(block, alignment);
  }
  return DeallocateAlignedSized(block, bytes, static_cast<size_t>(alignment));
}

}  // namespace
}  // namespace quarry

// ------------------------------------------------------------ basic forms

QUARRY_REPLACEABLE void operator delete(void* block) noexcept {
  quarry::Deallocate(block);
}

QUARRY_REPLACEABLE void operator delete(void* block,
                                        std::align_val_t) noexcept {
  quarry::Deallocate(block);
}

// ------------------------------------------- forms that are calls of others

QUARRY_REPLACEABLE void operator delete[](void* block) noexcept {
  ::operator delete(block);
}

QUARRY_REPLACEABLE void operator delete[](void* block,
                                          std::align_val_t alignment) noexcept {
  ::operator delete(block, alignment);
}

QUARRY_REPLACEABLE void operator delete(void* block,
                                        const std::nothrow_t&) noexcept {
  ::operator delete(block);
}

QUARRY_REPLACEABLE void operator delete[](void* block,
                                          const std::nothrow_t&) noexcept {
  ::operator delete[](block);
}

QUARRY_REPLACEABLE void operator delete(void* block, std::align_val_t alignment,
                                        const std::nothrow_t&) noexcept {
  ::operator delete(block, alignment);
}

QUARRY_REPLACEABLE void operator delete[](void* block,
                                          std::align_val_t alignment,
                                          const std::nothrow_t&) noexcept {
  ::operator delete[](block, alignment);
}

// -------------------------------------------------------- forms with a size

QUARRY_REPLACEABLE void operator delete(void* block, size_t bytes) noexcept {
  quarry::DeleteSized<::operator delete>(block, bytes);
}

QUARRY_REPLACEABLE void operator delete[](void* block, size_t bytes) noexcept {
  quarry::DeleteSized<::operator delete[]>(block, bytes);
}

QUARRY_REPLACEABLE void operator delete(void* block, size_t bytes,
                                        std::align_val_t alignment) noexcept {
  quarry::DeleteAlignedSized<::operator delete>(block, bytes, alignment);
}

QUARRY_REPLACEABLE void operator delete[](void* block, size_t bytes,
                                          std::align_val_t alignment) noexcept {
  quarry::DeleteAlignedSized<::operator delete[]>(block, bytes, alignment);
}
