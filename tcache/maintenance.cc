#include "tcache/maintenance.h"

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/single_threaded.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "arena/clock.h"
#include "arena/errno_saver.h"
#include "arena/limits.h"
#include "arena/lock.h"
#include "arena/process_arenas.h"
#include "arena/processors.h"
#include "arena/report.h"
#include "arena/settings.h"
#include "tcache/cache_registry.h"
#include "tcache/orphans.h"
#include "tcache/process_fence.h"
#include "tcache/start_retry.h"
#include "tcache/thread_cache.h"

namespace quarry {
namespace {

constexpr uint32_t kShortestPauseMs = 10;

// After so long without work the thread ends, and is started anew when there is some,
// which takes some 50 us. A process whose main thread has called pthread_exit() ends with
// its last thread, which must not be this one for longer; and what a thread is started with
// (capabilities, filters of system calls) is what its starter has then.
constexpr uint64_t kIdleMs = 500;

// Far below the 49 days after which the clock begins anew.
constexpr size_t kMostDecayMs = size_t{24} * 60 * 60 * 1000;

// A tick needs a few KiB. But glibc puts the thread-local storage of the whole
// program on each stack, and large libraries have some 100 KiB of it. Pages
// that are not touched cost nothing.
constexpr size_t kStackBytes = size_t{256} << 10;

uint32_t DecayMs() {
  return static_cast<uint32_t>(std::min(
      settings.decay_ms.load(std::memory_order_relaxed), kMostDecayMs));
}

uint32_t PauseMs() {
  return AboveSoftLimit() ? kShortestPauseMs
                          : std::max(DecayMs() / 4, kShortestPauseMs);
}

void Pause(uint32_t pause_ms) {
  const timespec pause = {pause_ms / 1000, pause_ms % 1000 * 1000000L};
  nanosleep(&pause, nullptr);
}

// Returns when there is work, or `most_ms` have passed; false when there was
// nothing to do for so long that the thread is to end.
bool Sleep(uint64_t most_ms, MaintenancePace* pace) {
  maintenance_signal.FallAsleep();
  if (most_ms == MaintenancePace::kUntilWork) {
    if (MaintenanceTick(NowMs()) != TickResult::kNothingLeft) {
      maintenance_signal.StayAwake();
      return true;
    }
    pace->NoteWork();
    return maintenance_signal.WaitForWorkOrEnd(kIdleMs);
  }
  if (maintenance_signal.WaitForWork(most_ms)) pace->NoteWork();
  return true;
}

void* Maintain(void*) {
  prctl(PR_SET_NAME, "quarry");
  // A thread that must not be interrupted may have started this one, which must not
  // compete with it; nor be bound to its processor, and wait there with a lock that others
  // wait for.
  RunOnAllProcessors();
  // By the system's own call: libc's lies on pages that few programs touch.
  const sched_param no_priority = {};
  (void)syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &no_priority);
  MaintenancePace pace;
  for (;;) {
    // First: what was just freed is too young, and a program that takes it and
    // frees it again in a loop would wake the thread as often.
    const uint32_t pause_ms = PauseMs();
    Pause(pause_ms);
    uint64_t most_ms;
    if (pace.SleepsAfter(MaintenanceTick(NowMs()), pause_ms, &most_ms)) {
      if (!Sleep(most_ms, &pace)) return nullptr;
    }
    QUARRY_DCHECK(thread_state.cache == &no_cache);
  }
}

bool StartThread() {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  // A thread begins with the mask of the one that starts it. glibc keeps the
  // signals of its own out of it.
  sigset_t all, mask;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &mask);
  pthread_t thread;
  pthread_attr_setstacksize(&attributes, kStackBytes);
  int error = pthread_create(&thread, &attributes, Maintain, nullptr);
  if (error == EINVAL) {
    // Thread-local storage alone is more than that: as for any other thread.
    pthread_attr_destroy(&attributes);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    error = pthread_create(&thread, &attributes, Maintain, nullptr);
  }
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  pthread_attr_destroy(&attributes);
  return error == 0;
}

// What was freed before this time is due at `now_ms`.
uint32_t DueBeforeMs(uint32_t now_ms) {
  return now_ms - (AboveSoftLimit() ? 0 : DecayMs());
}

// How much of the slabs one call looks at.
struct TidyBounds {
  size_t caches;  // That have something to do.
  size_t steps;   // Over the slabs of each.
};

// Tidies the caches from *next on, from the first if that is nullptr, and sets it to where
// the bounds made it stop; nullptr after the last. Returns whether any has something left.
bool TidyCaches(TidyBounds most, ThreadCache** next, bool* gave_back) {
  const bool is_urgent = AboveSoftLimit();
  // One fence for all caches, of which most have nothing to do. Tidy() has one of its
  // own each time that it takes the lock of a cache.
  const bool asks_first = !is_urgent && CanFenceAllThreads();
  if (asks_first) FenceAllThreads();
  bool is_left = false;
  *next = cache_registry.VisitWhile(*next, [&](ThreadCache* cache) {
    if (asks_first && cache->IsTidy()) return true;
    if (cache->Tidy(is_urgent, gave_back, most.steps)) is_left = true;
    return --most.caches != 0;
  });
  return is_left;
}

bool TidyOrphans(size_t most_steps, bool* gave_back) {
  bool is_left = false;
  for (size_t i = 0; i < ArenasMade(); ++i) {
    if (OrphansOf(i).Tidy(AboveSoftLimit(), gave_back, most_steps)) is_left = true;
  }
  return is_left;
}

size_t PurgeArenas(uint32_t before_ms, size_t most_bytes) {
  size_t bytes = 0;
  for (size_t i = 0; i < ArenasMade() && bytes < most_bytes; ++i) {
    bytes += ArenaAt(i).PurgeFreedBefore(before_ms, most_bytes - bytes);
  }
  return bytes;
}

// In each call of a tick on a slow path.
constexpr TidyBounds kMostOfSlowPath = {.caches = 4, .steps = 2};

// A tick on a slow path. No call is to take long, so it tidies some caches and purges one
// step, and those that follow go on at once until nothing is due.
void TickIfDue() {
  static constinit std::atomic<uint32_t> last_ms{0};
  // Relaxed: who takes the flag takes a step, and what is missed by one tick is
  // found by the next.
  static constinit std::atomic<bool> is_behind{false};
  // The cache that is tidied next; nullptr if this tick has come to the last.
  static constinit std::atomic<ThreadCache*> next_cache{nullptr};
  const uint32_t now_ms = NowMs();
  const uint32_t before_ms = DueBeforeMs(now_ms);
  bool is_new = false;
  bool gave_back = false;
  uint32_t then_ms = last_ms.load(std::memory_order_relaxed);
  if (AgeMs(then_ms, now_ms) >= PauseMs() &&
      last_ms.compare_exchange_strong(then_ms, now_ms,
                                      std::memory_order_relaxed)) {
    (void)cache_registry.CloseParked(AboveSoftLimit(), kMostOfSlowPath.caches);
    (void)TidyOrphans(kMostOfSlowPath.steps, &gave_back);
    huge_blocks.PurgeFreedBefore(before_ms);
    is_new = true;
    is_behind.store(true, std::memory_order_relaxed);
  }
  if (!is_behind.load(std::memory_order_relaxed) ||
      !is_behind.exchange(false, std::memory_order_relaxed)) {
    return;
  }
  ThreadCache* next = next_cache.load(std::memory_order_relaxed);
  if (is_new || next != nullptr) {
    (void)TidyCaches(kMostOfSlowPath, &next, &gave_back);
    next_cache.store(next, std::memory_order_relaxed);
  }
  const size_t purged_bytes = PurgeArenas(before_ms, Arena::kPurgeStepBytes);
  if (next != nullptr || purged_bytes >= Arena::kPurgeStepBytes) {
    is_behind.store(true, std::memory_order_relaxed);
  }
}

constinit StartRetry start_retry;

}  // namespace

TickResult MaintenanceTick(uint32_t now_ms) {
  const uint32_t before_ms = DueBeforeMs(now_ms);
  // First, since the slabs that caches give up are dirty pages of arenas.
  bool gave_back = false;
  bool is_left = cache_registry.CloseParked(AboveSoftLimit());
  ThreadCache* next = nullptr;
  constexpr TidyBounds kAll = {.caches = SIZE_MAX, .steps = SlabPass::kMostSteps};
  is_left |= TidyCaches(kAll, &next, &gave_back);
  is_left |= TidyOrphans(kAll.steps, &gave_back);
  size_t given_bytes = huge_blocks.PurgeFreedBefore(before_ms);
  if (huge_blocks.statistics().cached_bytes != 0) is_left = true;
  given_bytes += PurgeArenas(before_ms, SIZE_MAX);
  for (size_t i = 0; i < ArenasMade(); ++i) {
    Arena& arena = ArenaAt(i);
    given_bytes += arena.PurgeOverCap();
    // Asked under the arena's lock: see maintenance_signal.h.
    if (arena.statistics().free_dirty_bytes != 0) is_left = true;
  }
  if (!is_left) return TickResult::kNothingLeft;
  return gave_back || given_bytes != 0 ? TickResult::kGaveBack
                                       : TickResult::kInVain;
}

bool MayBeLoader(const void* caller) {
  const uintptr_t base = getauxval(AT_BASE);
  // A static program has the loader somewhere in its own code.
  if (base == 0) return !__libc_single_threaded;
  const uintptr_t offset = reinterpret_cast<uintptr_t>(caller) - base;
  const auto* file = reinterpret_cast<const ElfW(Ehdr)*>(base);
  const auto* part = reinterpret_cast<const ElfW(Phdr)*>(base + file->e_phoff);
  for (size_t i = 0; i < file->e_phnum; ++i, ++part) {
    if (part->p_type == PT_LOAD && offset - part->p_vaddr < part->p_memsz) {
      return true;
    }
  }
  return false;
}

void MaintainOnSlowPath(const void* caller) {
  // In fork(): the thread would be a stranger to the child.
  if (has_every_lock) return;
  ErrnoSaver saver;
  const auto can_start = [caller] {
    return !thread_state.exited && (caller == nullptr || !MayBeLoader(caller));
  };
  if (maintenance_signal.IsOff()) {
    if (!settings.maintenance.load(std::memory_order_relaxed) ||
        !start_retry.IsDue(NowMs()) || !can_start()) {
      return TickIfDue();
    }
    maintenance_signal.TurnOn();
  }
  if (!settings.maintenance.load(std::memory_order_relaxed)) {
    maintenance_signal.TurnOff();
  } else if (can_start() && maintenance_signal.TryStart() && !StartThread()) {
    start_retry.NoteFailure(NowMs());
    maintenance_signal.TurnOff();
  }
}

}  // namespace quarry
