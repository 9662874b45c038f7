// Every replaceable form of C++'s operator new, and the size-returning ones of
// P0901. The only file of the library that is compiled with exceptions.
//
// The C++ runtime is used and not needed: each of its names is a weak
// reference, so that a C program that preloads Quarry loads no libstdc++, and a
// C++ program finds its own runtime's new_handler and bad_alloc, be it
// libstdc++ or libc++.
//
// Thread-safety: any number of threads at once.
// Errors: the plain forms call the new_handler until there is memory or no
//   handler, then throw std::bad_alloc; the nothrow forms return null in place
//   of any exception, the handler's own included. Without a C++ runtime there
//   is no way to throw: one line to stderr, and abort. errno may be ENOMEM after a
//   failure, as with the runtimes' own.
// Source: ISO C++20 [new.delete]; P0901r5 for the size-returning forms, under
//   the names that LLVM gives them.
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <initializer_list>
#include <new>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "alloc/calls.h"
#include "alloc/heap.h"
#include "alloc/operator_forms.h"
#include "alloc/quarry.h"
#include "arena/report.h"

// What the compiler puts in for the one throw and the one catch of this file.
asm(".weak __cxa_allocate_exception\n"
    ".weak __cxa_free_exception\n"
    ".weak __cxa_throw\n"
    ".weak __cxa_begin_catch\n"
    ".weak __cxa_end_catch\n"
    ".weak __gxx_personality_v0\n"
    ".weak _Unwind_Resume\n"
    ".weak _ZSt9terminatev\n"
    ".weak _ZNSt9bad_allocC1Ev\n"
    ".weak _ZNSt9bad_allocD1Ev\n"
    ".weak _ZTISt9bad_alloc\n"
    ".weak _ZTVSt9bad_alloc\n");

extern "C" {

// std::get_new_handler(), the same name in libstdc++ and libc++.
ABSL_ATTRIBUTE_WEAK std::new_handler _ZSt15get_new_handlerv();

// Only whether they are anywhere is of interest.
ABSL_ATTRIBUTE_WEAK void cxa_throw() asm("__cxa_throw");
ABSL_ATTRIBUTE_WEAK void personality() asm("__gxx_personality_v0");
ABSL_ATTRIBUTE_WEAK extern const char bad_alloc_type[] asm("_ZTISt9bad_alloc");

}  // extern "C"

// A static program has it only if it uses it itself.
#pragma weak dlsym

namespace quarry {
namespace {

// Volatile, since the compiler takes for granted that what it refers to itself
// is there.
using RuntimeFunction = void (*)();
constinit const volatile RuntimeFunction throw_function = cxa_throw;
constinit const volatile RuntimeFunction catch_function = personality;
constinit const char* const volatile thrown_type = bad_alloc_type;

bool HasRuntime() {
  return throw_function != nullptr && catch_function != nullptr &&
         thrown_type != nullptr;
}

// The function `name` of a C++ runtime that came into the process after Quarry,
// for a plug-in of a C program: weak references were bound before that. Null
// where there is none.
template <typename Function>
Function* LateRuntimeFunction(const char* name) {
  if (&dlsym == nullptr) return nullptr;
  // dlopen itself by name: its mere mention makes the linker warn about every
  // static program.
  const auto open = reinterpret_cast<void* (*)(const char*, int)>(
      dlsym(RTLD_DEFAULT, "dlopen"));
  if (open == nullptr) return nullptr;
  for (const char* runtime : {"libstdc++.so.6", "libc++.so.1"}) {
    void* library = open(runtime, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    void* function = dlsym(library, name);
    if (function != nullptr) return reinterpret_cast<Function*>(function);
  }
  return nullptr;
}

std::new_handler CurrentNewHandler() {
  std::new_handler (*current)() = _ZSt15get_new_handlerv;
  if (current == nullptr) {
    current = LateRuntimeFunction<std::new_handler()>("_ZSt15get_new_handlerv");
  }
  return current == nullptr ? nullptr : current();
}

[[noreturn]] void ThrowBadAlloc(size_t bytes) {
  if (HasRuntime()) throw std::bad_alloc();
  // std::__throw_bad_alloc() of libstdc++ and of libc++.
  for (const char* name :
       {"_ZSt17__throw_bad_allocv", "_ZNSt3__117__throw_bad_allocEv"}) {
    auto* throw_bad_alloc = LateRuntimeFunction<void()>(name);
    if (throw_bad_alloc != nullptr) throw_bad_alloc();
  }
  LineBuffer line;
  line.AppendText("quarry: no memory for operator new of ");
  line.AppendDecimal(bytes).AppendText(" bytes, and no C++ runtime to throw ");
  line.AppendText("std::bad_alloc, aborting");
  line.Flush();
  abort();
}

// Null when there is no memory and no handler that might find some.
void* AllocateOrCallHandlers(size_t bytes, size_t alignment) {
  for (;;) {
    void* block = alignment <= kMinAlignmentBytes
                      ? MallocSlow(bytes)
                      : AllocateAligned(bytes, alignment);
    if (ABSL_PREDICT_TRUE(block != nullptr)) return block;
    const std::new_handler handler = CurrentNewHandler();
    if (handler == nullptr) return nullptr;
    handler();
  }
}

ABSL_ATTRIBUTE_NOINLINE void* NewSlow(size_t bytes, size_t alignment) {
  void* block = AllocateOrCallHandlers(bytes, alignment);
  if (ABSL_PREDICT_FALSE(block == nullptr)) ThrowBadAlloc(bytes);
  return block;
}

ABSL_ATTRIBUTE_NOINLINE void* NewNothrowSlow(size_t bytes,
                                             size_t alignment) noexcept {
  // With a runtime that came late nothing here can catch: no handler may run.
  if (!HasRuntime()) {
    return alignment <= kMinAlignmentBytes ? MallocSlow(bytes)
                                           : AllocateAligned(bytes, alignment);
  }
  try {
    return AllocateOrCallHandlers(bytes, alignment);
  } catch (...) {
    return nullptr;
  }
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* New(size_t bytes) {
  void* block = TryPop(bytes);
  if (ABSL_PREDICT_TRUE(block != nullptr)) return block;
  return NewSlow(bytes, kMinAlignmentBytes);
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void* NewNothrow(size_t bytes) {
  void* block = TryPop(bytes);
  if (ABSL_PREDICT_TRUE(block != nullptr)) return block;
  return NewNothrowSlow(bytes, kMinAlignmentBytes);
}

void* NewAligned(size_t bytes, std::align_val_t alignment) {
  if (ABSL_PREDICT_FALSE(!IsPowerOfTwo(static_cast<size_t>(alignment)))) {
    ThrowBadAlloc(bytes);
  }
  void* block = TryPopAligned(bytes, static_cast<size_t>(alignment));
  if (ABSL_PREDICT_TRUE(block != nullptr)) return block;
  return NewSlow(bytes, static_cast<size_t>(alignment));
}

void* NewAlignedNothrow(size_t bytes, std::align_val_t alignment) {
  if (ABSL_PREDICT_FALSE(!IsPowerOfTwo(static_cast<size_t>(alignment)))) {
    return nullptr;
  }
  void* block = TryPopAligned(bytes, static_cast<size_t>(alignment));
  if (ABSL_PREDICT_TRUE(block != nullptr)) return block;
  return NewNothrowSlow(bytes, static_cast<size_t>(alignment));
}

using NewForm = void*(size_t);
using NewAlignedForm = void*(size_t, std::align_val_t);

// g++ wants an alias declared as its target is.
#define QUARRY_OWN(name) __attribute__((alias(name), malloc, alloc_size(1)))
NewForm OwnNew QUARRY_OWN("_Znwm");
NewForm OwnArrayNew QUARRY_OWN("_Znam");
NewAlignedForm OwnNewAligned QUARRY_OWN("_ZnwmSt11align_val_t");
NewAlignedForm OwnArrayNewAligned QUARRY_OWN("_ZnamSt11align_val_t");
#undef QUARRY_OWN

// Whether a form is Quarry's, and for arrays also the one that it is a call of.
bool NewIsOwn() { return IsOwn<NewForm>(&::operator new, OwnNew); }
bool ArrayNewIsOwn() {
  return IsOwn<NewForm>(&::operator new[], OwnArrayNew) && NewIsOwn();
}
bool NewAlignedIsOwn() {
  return IsOwn<NewAlignedForm>(&::operator new, OwnNewAligned);
}
bool ArrayNewAlignedIsOwn() {
  return IsOwn<NewAlignedForm>(&::operator new[], OwnArrayNewAligned) &&
         NewAlignedIsOwn();
}

// What allocate() returns, of the program's own.
template <typename Allocate>
ABSL_ATTRIBUTE_NOINLINE void* NullIfThrown(Allocate allocate) noexcept {
  if (!HasRuntime()) return allocate();
  try {
    return allocate();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace
}  // namespace quarry

// ------------------------------------------------------------ basic forms

QUARRY_REPLACEABLE void* operator new(size_t bytes) {
  return quarry::New(bytes);
}

QUARRY_REPLACEABLE void* operator new(size_t bytes,
                                      std::align_val_t alignment) {
  return quarry::NewAligned(bytes, alignment);
}

// ------------------------------------------- forms that are calls of others

QUARRY_REPLACEABLE void* operator new[](size_t bytes) {
  return ::operator new(bytes);
}

QUARRY_REPLACEABLE void* operator new[](size_t bytes,
                                        std::align_val_t alignment) {
  return ::operator new(bytes, alignment);
}

QUARRY_REPLACEABLE void* operator new(size_t bytes,
                                      const std::nothrow_t&) noexcept {
  if (ABSL_PREDICT_FALSE(!quarry::NewIsOwn())) {
    return quarry::NullIfThrown([=] { return ::operator new(bytes); });
  }
  return quarry::NewNothrow(bytes);
}

QUARRY_REPLACEABLE void* operator new[](size_t bytes,
                                        const std::nothrow_t&) noexcept {
  if (ABSL_PREDICT_FALSE(!quarry::ArrayNewIsOwn())) {
    return quarry::NullIfThrown([=] { return ::operator new[](bytes); });
  }
  return quarry::NewNothrow(bytes);
}

QUARRY_REPLACEABLE void* operator new(size_t bytes, std::align_val_t alignment,
                                      const std::nothrow_t&) noexcept {
  if (ABSL_PREDICT_FALSE(!quarry::NewAlignedIsOwn())) {
    return quarry::NullIfThrown(
        [=] { return ::operator new(bytes, alignment); });
  }
  return quarry::NewAlignedNothrow(bytes, alignment);
}

QUARRY_REPLACEABLE void* operator new[](size_t bytes,
                                        std::align_val_t alignment,
                                        const std::nothrow_t&) noexcept {
  if (ABSL_PREDICT_FALSE(!quarry::ArrayNewAlignedIsOwn())) {
    return quarry::NullIfThrown(
        [=] { return ::operator new[](bytes, alignment); });
  }
  return quarry::NewAlignedNothrow(bytes, alignment);
}

// -------------------------------------- P0901, size-returning operator new

extern "C" {

struct __sized_ptr_t {
  void* p;
  size_t n;  // Usable bytes.
};

}  // extern "C"

namespace quarry {
namespace {

// Of a block of the program's own no more is known than what was asked for.
__sized_ptr_t WithUsableBytes(void* block, size_t bytes, bool is_own) {
  return {block, is_own ? UsableBytes(block) : bytes};
}

}  // namespace
}  // namespace quarry

extern "C" {

enum class __hot_cold_t : uint8_t;  // How hot the block will be: not used.

QUARRY_PUBLIC __sized_ptr_t __size_returning_new(size_t bytes) {
  return quarry::WithUsableBytes(::operator new(bytes), bytes,
                                 quarry::NewIsOwn());
}

QUARRY_PUBLIC __sized_ptr_t
__size_returning_new_aligned(size_t bytes, std::align_val_t alignment) {
  return quarry::WithUsableBytes(::operator new(bytes, alignment), bytes,
                                 quarry::NewAlignedIsOwn());
}

QUARRY_PUBLIC __sized_ptr_t __size_returning_new_hot_cold(size_t bytes,
                                                          __hot_cold_t) {
  return __size_returning_new(bytes);
}

QUARRY_PUBLIC __sized_ptr_t __size_returning_new_aligned_hot_cold(
    size_t bytes, std::align_val_t alignment, __hot_cold_t) {
  return __size_returning_new_aligned(bytes, alignment);
}

}  // extern "C"
