#include "tcache/maintenance_thread.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "arena/clock.h"
#include "arena/errno_saver.h"
#include "arena/futex.h"
#include "arena/maintenance_signal.h"

namespace quarry {

constinit MaintenanceThread maintenance_thread;

namespace {

int32_t ThisThread() { return static_cast<int32_t>(syscall(SYS_gettid)); }

// Whether the kernel has a thread of this id, of this process, that is not the caller.
bool IsAnother(int32_t id) {
  ErrnoSaver saver;
  return id != ThisThread() && syscall(SYS_tgkill, getpid(), id, 0) == 0;
}

}  // namespace

bool MaintenanceThread::TryBegin() {
  // The one before may be about to be gone, and who holds must not miss it. Not for long:
  // it may be the last thread of the process, in whose exit handlers the caller waits.
  const int32_t before = id_.load(std::memory_order_seq_cst);
  for (int looks = 0; looks < 20 && before > 0 && IsAnother(before); ++looks) {
    SleepNs(kLookNs);
  }
  id_.store(kBeginning, std::memory_order_seq_cst);
  if (!IsHeld()) return true;
  id_.store(kNone, std::memory_order_seq_cst);
  return false;
}

void MaintenanceThread::NoteBegun() {
  id_.store(ThisThread(), std::memory_order_seq_cst);
}

void MaintenanceThread::Pause(uint32_t pause_ms) {
  (void)FutexWaitFor(holds_, 0, pause_ms);
}

void MaintenanceThread::Hold() {
  holds_.fetch_add(1, std::memory_order_seq_cst);
  FutexWakeOne(holds_);
  for (;;) {
    const int32_t id = id_.load(std::memory_order_seq_cst);
    if (id == kNone || (id > 0 && !IsAnother(id))) return;
    // Again, for it may have been about to fall asleep.
    maintenance_signal.Wake();
    SleepNs(kLookNs);
  }
}

void MaintenanceThread::ResetAfterFork() {
  holds_.store(0, std::memory_order_relaxed);
  id_.store(kNone, std::memory_order_relaxed);
}

}  // namespace quarry
