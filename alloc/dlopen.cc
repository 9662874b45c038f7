// dlopen() without RTLD_DEEPBIND, in the shared library only.
//
// What is opened with that flag looks for symbols in its own dependencies first,
// and finds libc's malloc and free there. It would give Quarry's blocks to libc's
// free(), and libc's to the rest of the program; no allocator that is preloaded
// survives that. PHP opens its extensions so. Without the flag they find what the
// program finds. QUARRY_OPTIONS=deepbind:1 leaves it, for a program whose libraries
// must have symbols of their own.
//
// A static program has libc's dlopen: what that opens brings a libc along.
//
// Thread-safety: any number of threads at once.
#include <dlfcn.h>

#include <atomic>

#include "alloc/options.h"
#include "alloc/quarry.h"
#include "arena/settings.h"

namespace {

using Dlopen = void*(const char* file, int mode);

// The one that comes after this, as a rule libc's.
constinit std::atomic<Dlopen*> next_dlopen{nullptr};

}  // namespace

extern "C" QUARRY_PUBLIC void* dlopen(const char* file, int mode) noexcept {
  Dlopen* next = next_dlopen.load(std::memory_order_relaxed);
  if (next == nullptr) {
    next = reinterpret_cast<Dlopen*>(dlsym(RTLD_NEXT, "dlopen"));
    if (next == nullptr) return nullptr;  // dlerror() says why.
    next_dlopen.store(next, std::memory_order_relaxed);
    quarry::LoadOptions();
  }
  if (!quarry::settings.deepbind.load(std::memory_order_relaxed)) {
    mode &= ~RTLD_DEEPBIND;
  }
  // A jump, not a call: libc looks at its return address for who opens, since that
  // one's DT_RUNPATH counts.
  return next(file, mode);
}
