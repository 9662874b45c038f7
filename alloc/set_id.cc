// The calls that change a process's user or groups, without the maintenance thread; in the
// shared library only.
//
// glibc makes them in each thread, and ends the process if they do not succeed or fail in
// all. A program of one thread that has given up capabilities, or kept some over a change
// of user, would end so if there were a second one: see tcache/maintenance_thread.h.
//
// Thread-safety: any number of threads at once.
// Limits: not syscall(), which changes the calling thread alone, as it did. The archive has
//   none of this, since a static program has no other setuid() than its libc's.
#include <dlfcn.h>
#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

#include "alloc/quarry.h"
#include "tcache/maintenance.h"

namespace {

// Calls the next function of this name, as a rule libc's, and notes it in `next`.
template <typename... Arguments>
int CallAlone(const char* name, std::atomic<void*>& next, Arguments... arguments) {
  void* function = next.load(std::memory_order_relaxed);
  if (function == nullptr) {
    function = dlsym(RTLD_NEXT, name);
    if (function == nullptr) {
      errno = ENOSYS;
      return -1;
    }
    next.store(function, std::memory_order_relaxed);
  }
  quarry::WithoutMaintenance alone;
  return reinterpret_cast<int (*)(Arguments...)>(function)(arguments...);
}

}  // namespace

extern "C" {

QUARRY_PUBLIC int setuid(uid_t user) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setuid", next, user);
}

QUARRY_PUBLIC int setgid(gid_t group) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setgid", next, group);
}

QUARRY_PUBLIC int seteuid(uid_t user) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("seteuid", next, user);
}

QUARRY_PUBLIC int setegid(gid_t group) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setegid", next, group);
}

QUARRY_PUBLIC int setreuid(uid_t user, uid_t effective) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setreuid", next, user, effective);
}

QUARRY_PUBLIC int setregid(gid_t group, gid_t effective) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setregid", next, group, effective);
}

QUARRY_PUBLIC int setresuid(uid_t user, uid_t effective, uid_t saved) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setresuid", next, user, effective, saved);
}

QUARRY_PUBLIC int setresgid(gid_t group, gid_t effective, gid_t saved) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setresgid", next, group, effective, saved);
}

QUARRY_PUBLIC int setgroups(size_t count, const gid_t* groups) noexcept {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("setgroups", next, count, groups);
}

// Which calls libc's own setgroups().
QUARRY_PUBLIC int initgroups(const char* user, gid_t group) {
  static constinit std::atomic<void*> next{nullptr};
  return CallAlone("initgroups", next, user, group);
}

}  // extern "C"
