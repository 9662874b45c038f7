// dlopen() without RTLD_DEEPBIND, in the shared library only.
//
// What is opened with that flag looks for symbols in its own dependencies first,
// and finds libc's malloc and free there. It would give Quarry's blocks to libc's
// free(), and libc's to the rest of the program. PHP opens its extensions so.
// Without the flag they find what the program finds, in all things:
// QUARRY_OPTIONS=deepbind:1 leaves it, for a program whose libraries must have
// symbols of their own.
//
// Thread-safety: any number of threads at once.
// Limits: not dlmopen(). The archive has none of this, since a static program has
//   no other dlopen than its libc's.
#include <dlfcn.h>

#include <atomic>

#include "alloc/options.h"
#include "alloc/quarry.h"
#include "arena/settings.h"

// libc looks at its return address for who opens, since that one's DT_RUNPATH
// counts. So this must end in a jump: clang does as it is told, g++ as it optimises.
#if defined(__clang__)
#define QUARRY_ENDS_IN_A_JUMP
#define QUARRY_JUMP [[clang::musttail]]
#else
#define QUARRY_ENDS_IN_A_JUMP __attribute__((optimize("O2")))
#define QUARRY_JUMP
#endif

namespace {

using Dlopen = void*(const char* file, int mode);

// The one that comes after this, as a rule libc's.
constinit std::atomic<Dlopen*> next_dlopen{nullptr};

}  // namespace

extern "C" QUARRY_PUBLIC QUARRY_ENDS_IN_A_JUMP void* dlopen(
    const char* file, int mode) noexcept {
  Dlopen* next = next_dlopen.load(std::memory_order_relaxed);
  if (next == nullptr) {
    next = reinterpret_cast<Dlopen*>(dlsym(RTLD_NEXT, "dlopen"));
    if (next == nullptr) return nullptr;  // dlerror() says why.
    quarry::LoadOptions();
    next_dlopen.store(next, std::memory_order_relaxed);
  }
  if (!quarry::settings.deepbind.load(std::memory_order_relaxed)) {
    mode &= ~RTLD_DEEPBIND;
  }
  QUARRY_JUMP return next(file, mode);
}
