// Whether the maintenance thread exists: how a call that must not find it ends it.
//
// glibc has each thread of the process change its user and groups by itself, and ends the
// process unless all succeed or all fail. But capabilities are a thread's own: a program
// of one thread that has changed its by capset() does not know of another that still has
// them all. So for such a call (alloc/set_id.cc) there is no such thread.
//
//   slow path:   TryBegin ---> thread: NoteBegun ... IsToEnd() in each pause -> it ends
//                    | held: not now
//   the call:    Hold ... the kernel has no such thread any more ... Release
//
// A held thread is not forgotten: it ends as one that is wanted (maintenance_signal.h), and
// the first slow path after Release() starts the next.
//
// Thread-safety: any thread. errno is preserved.
// Ordering: who begins says so and then asks whether it is held; who holds says so and then
//   asks whether a thread has begun. All four are sequentially consistent, so one of two
//   that come at once sees the other. tests/model/maintenance_thread.pml has the argument.
#ifndef QUARRY_TCACHE_MAINTENANCE_THREAD_H_
#define QUARRY_TCACHE_MAINTENANCE_THREAD_H_

#include <atomic>
#include <cstdint>

namespace quarry {

class MaintenanceThread {
 public:
  // --- For who starts it, one at a time. ---

  // False if it is held. On true the caller starts it, or calls NoteFailure().
  [[nodiscard]] bool TryBegin();
  void NoteFailure() { id_.store(kNone, std::memory_order_seq_cst); }

  // --- For the thread. ---

  // First of all.
  void NoteBegun();
  // Whether it is to end now.
  bool IsToEnd() const { return IsHeld(); }
  // Waits so long, or until it is to end.
  void Pause(uint32_t pause_ms);

  // --- For who needs it gone. ---

  // Ends it, if there is one, and waits until it is gone: some milliseconds if it is at
  // work. From then on until as many calls of Release() there is none.
  void Hold();
  void Release() { holds_.fetch_sub(1, std::memory_order_seq_cst); }
  bool IsHeld() const { return holds_.load(std::memory_order_seq_cst) != 0; }

  // In the child of a fork, which has no such thread, nor others that hold it.
  void ResetAfterFork();

 private:
  static constexpr int32_t kNone = 0;
  static constexpr int32_t kBeginning = -1;
  static constexpr uint32_t kLookNs = 50'000;

  // A futex, of those who have it held.
  std::atomic<uint32_t> holds_{0};
  // The kernel's id of the thread that began last, which may be gone.
  std::atomic<int32_t> id_{kNone};
};

extern constinit MaintenanceThread maintenance_thread;

}  // namespace quarry

#endif  // QUARRY_TCACHE_MAINTENANCE_THREAD_H_
