#include "tcache/maintenance.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arena/clock.h"
#include "arena/limits.h"
#include "arena/process_arenas.h"
#include "arena/settings.h"
#include "gtest/gtest.h"
#include "tcache/cache_registry.h"
#include "tests/arena/in_child.h"
#include "tests/tcache/blocks.h"

namespace quarry {
namespace {

using State = MaintenanceSignal::State;

constexpr size_t kMiB = size_t{1} << 20;

// The process's first allocation sets up what happens at a fork. What a test
// then does to the one signal there is, it does in a child.
const bool process_started = (Free(Allocate(16)), true);

// Frees so many bytes in an arena, all of them dirty.
void MakeDirty(size_t bytes, size_t arena = 0) {
  Run* const run =
      ArenaAt(arena).Allocate(bytes / PageBytes(), PageBytes());
  QUARRY_CHECK(run != nullptr);
  memset(run->start, 1, bytes);
  ArenaAt(arena).Deallocate(run);
}

// The thread that asks has just had its cache opened. The second tick finds that
// it does not use it, and has nothing left of it.
void TickUntilCachesAreTidy() {
  for (int i = 0; i < 2; ++i) (void)MaintenanceTick(NowMs());
}

void FreeHugeBlock() {
  // Else it raises the threshold, and is not kept.
  settings.mmap_threshold_adapts = false;
  huge_blocks.Deallocate(huge_blocks.Allocate(8 * kMiB, PageBytes()));
}

void KeepHugeBlock() {
  FreeHugeBlock();
  QUARRY_CHECK(huge_blocks.statistics().cached_bytes != 0);
}

size_t DirtyBytes() {
  size_t bytes = 0;
  for (size_t i = 0; i < kMaxArenas; ++i) {
    bytes += ArenaAt(i).statistics().free_dirty_bytes;
  }
  return bytes;
}

bool IsInState(State state) { return maintenance_signal.state() == state; }

void StartThread() {
  maintenance_signal.NoteWork();
  StartMaintenanceIfWanted();
  QUARRY_CHECK(!maintenance_signal.IsWanted() && !maintenance_signal.IsOff());
}

// Each has a cache. They end with the process, which is to be a test's child.
void StartThreadsThatWait(size_t threads) {
  static std::atomic<size_t> ready;
  for (size_t i = 0; i < threads; ++i) {
    std::thread([] {
      Free(Allocate(64));
      ++ready;
      for (;;) pause();
    }).detach();
  }
  QUARRY_CHECK(Soon([threads] { return ready == threads; }));
}

// The folders in /proc of this process's threads of the name "quarry".
std::vector<std::string> MaintenanceThreads() {
  std::vector<std::string> found;
  DIR* const tasks = opendir("/proc/self/task");
  while (const dirent* task = readdir(tasks)) {
    const std::string path = std::string("/proc/self/task/") + task->d_name;
    std::string name;
    std::getline(std::ifstream(path + "/comm") >> std::ws, name);
    if (name == "quarry") found.push_back(path);
  }
  closedir(tasks);
  return found;
}

bool HasThread() {
  return Soon([] { return !MaintenanceThreads().empty(); });
}

// --- Ticks. ---

TEST(MaintenanceTick, NothingIsLeftOfNothing) {
  EXPECT_EQ(InChild([] {
              TickUntilCachesAreTidy();
              QUARRY_CHECK(MaintenanceTick(NowMs()) ==
                           TickResult::kNothingLeft);
            }),
            0);
}

TEST(MaintenanceTick, YoungMemoryStaysAndOldMemoryGoes) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 60000;
              TickUntilCachesAreTidy();
              MakeDirty(4 * kMiB);
              QUARRY_CHECK(MaintenanceTick(NowMs()) == TickResult::kInVain);
              QUARRY_CHECK(DirtyBytes() >= 4 * kMiB);
              QUARRY_CHECK(MaintenanceTick(NowMs() + 60001) ==
                           TickResult::kNothingLeft);
              QUARRY_CHECK(DirtyBytes() == 0);
            }),
            0);
}

TEST(MaintenanceTick, EveryArenaHasItsTurn) {
  EXPECT_EQ(InChild([] {
              TickUntilCachesAreTidy();
              for (size_t i = 0; i < kMaxArenas; ++i) MakeDirty(kMiB, i);
              QUARRY_CHECK(MaintenanceTick(NowMs() + 60001) ==
                           TickResult::kNothingLeft);
              QUARRY_CHECK(DirtyBytes() == 0);
            }),
            0);
}

TEST(MaintenanceTick, HugeBlocksKeptForReuseGo) {
  EXPECT_EQ(InChild([] {
              TickUntilCachesAreTidy();
              KeepHugeBlock();
              QUARRY_CHECK(MaintenanceTick(NowMs() + 60001) ==
                           TickResult::kNothingLeft);
              QUARRY_CHECK(huge_blocks.statistics().cached_bytes == 0);
            }),
            0);
}

TEST(MaintenanceTick, AboveTheSoftLimitNothingIsTooYoung) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 60000;
              TickUntilCachesAreTidy();
              SetMemoryLimits(PageBytes(), 0);
              MakeDirty(4 * kMiB);
              QUARRY_CHECK(MaintenanceTick(NowMs() + 1) ==
                           TickResult::kNothingLeft);
              QUARRY_CHECK(DirtyBytes() == 0);
            }),
            0);
}

TEST(MaintenanceTick, WithoutDelayEverythingGoes) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 0;
              TickUntilCachesAreTidy();
              MakeDirty(4 * kMiB);
              QUARRY_CHECK(MaintenanceTick(NowMs() + 1) ==
                           TickResult::kNothingLeft);
              QUARRY_CHECK(DirtyBytes() == 0);
            }),
            0);
}

// --- The thread. ---

TEST(Maintenance, AProcessWithoutWorkHasNoThread) {
  EXPECT_EQ(InChild([] {
              for (int i = 0; i < 1000; ++i) Free(Allocate(100));
              MakeDirty(kMiB / 2);
              StartMaintenanceIfWanted();
              QUARRY_CHECK(IsInState(State::kNoThread));
            }),
            0);
}

TEST(Maintenance, WorkStartsOneThread) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 600000;
              MakeDirty(4 * kMiB);
              QUARRY_CHECK(maintenance_signal.IsWanted());
              QUARRY_CHECK(MaintenanceThreads().empty());
              for (int i = 0; i < 10; ++i) StartMaintenanceIfWanted();
              QUARRY_CHECK(IsInState(State::kAwake));
              QUARRY_CHECK(HasThread());
              QUARRY_CHECK(MaintenanceThreads().size() == 1);
            }),
            0);
}

TEST(Maintenance, AnIdleProcessGivesItsMemoryBack) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 100;
              MakeDirty(32 * kMiB);
              KeepHugeBlock();
              StartMaintenanceIfWanted();
              QUARRY_CHECK(Soon([] { return DirtyBytes() == 0; }));
              QUARRY_CHECK(Soon([] {
                return huge_blocks.statistics().cached_bytes == 0;
              }));
            }),
            0);
}

TEST(Maintenance, TheThreadSleepsWhenNothingIsLeftAndWakesForMore) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 20;
              StartThread();
              for (int i = 0; i < 10; ++i) {
                QUARRY_CHECK(Soon([] { return IsInState(State::kAsleep); }));
                MakeDirty(4 * kMiB);
                QUARRY_CHECK(Soon([] { return DirtyBytes() == 0; }));
              }
            }),
            0);
}

// Bursts of work from several threads, at all moments about its falling asleep.
TEST(Maintenance, NoWorkIsForgotten) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 0;
              StartThread();
              for (int i = 0; i < (kUnderTsan ? 10 : 50); ++i) {
                std::vector<std::thread> threads;
                for (size_t t = 0; t < 3; ++t) {
                  threads.emplace_back([t, i] {
                    usleep(static_cast<useconds_t>(500 * i));
                    for (int j = 0; j < 5; ++j) MakeDirty(2 * kMiB, t);
                  });
                }
                for (std::thread& thread : threads) thread.join();
                QUARRY_CHECK(Soon([] { return DirtyBytes() == 0; }));
              }
              // Where faults are slow, it may have had nothing to do for so long that it
              // has ended: frees purge at once here.
              QUARRY_CHECK(Soon([] {
                return IsInState(State::kAsleep) || IsInState(State::kNoThread);
              }));
            }),
            0);
}

TEST(Maintenance, TheThreadTakesNoSignals) {
  EXPECT_EQ(InChild([] {
              StartThread();
              QUARRY_CHECK(HasThread());
              std::ifstream status(MaintenanceThreads()[0] + "/status");
              std::string line;
              while (std::getline(status, line)) {
                if (line.rfind("SigBlk:", 0) == 0) break;
              }
              const uint64_t blocked = strtoull(&line[7], nullptr, 16);
              for (int number = 1; number < 64; ++number) {
                // The last four are never blocked: two by the kernel, two as
                // glibc's own.
                if (number == SIGKILL || number == SIGSTOP || number == 32 ||
                    number == 33) {
                  continue;
                }
                QUARRY_CHECK((blocked >> (number - 1) & 1) != 0);
              }
              // The thread that started it takes those that it took before.
              sigset_t mask;
              pthread_sigmask(SIG_BLOCK, nullptr, &mask);
              QUARRY_CHECK(sigismember(&mask, SIGTERM) == 0);
            }),
            0);
}

TEST(Maintenance, AThreadThatExitsDoesNotStartIt) {
  EXPECT_EQ(InChild([] {
              OnAnotherThread([] {
                Free(Allocate(100));
                static pthread_key_t key;
                pthread_key_create(&key, [](void* value) {
                  // In the last round, when the thread has no cache any more.
                  if (!thread_state.exited) {
                    pthread_setspecific(key, value);
                    return;
                  }
                  maintenance_signal.NoteWork();
                  StartMaintenanceIfWanted();
                });
                pthread_setspecific(key, &key);
              });
              QUARRY_CHECK(maintenance_signal.IsWanted());
            }),
            0);
}

TEST(Maintenance, AFreeByTheLoaderDoesNotStartIt) {
  EXPECT_EQ(InChild([] {
              maintenance_signal.NoteWork();
              const uintptr_t loader = getauxval(AT_BASE);
              if (loader != 0) {
                StartMaintenanceIfWanted(
                    reinterpret_cast<const void*>(loader + 0x2000));
                QUARRY_CHECK(maintenance_signal.IsWanted());
              }
              StartMaintenanceIfWanted(reinterpret_cast<const void*>(&abort));
              QUARRY_CHECK(!maintenance_signal.IsWanted());
            }),
            0);
}

TEST(Maintenance, AForkHandlerDoesNotStartIt) {
  EXPECT_EQ(InChild([] {
              maintenance_signal.NoteWork();
              has_every_lock = true;
              StartMaintenanceIfWanted();
              has_every_lock = false;
              QUARRY_CHECK(maintenance_signal.IsWanted());
              StartMaintenanceIfWanted();
              QUARRY_CHECK(!maintenance_signal.IsWanted());
            }),
            0);
}

// --- Without the thread. ---

TEST(Maintenance, SlowPathsTickWhereTheOptionTurnsItOff) {
  EXPECT_EQ(InChild([] {
              settings.maintenance = false;
              settings.decay_ms = 20;
              MakeDirty(4 * kMiB);
              QUARRY_CHECK(maintenance_signal.IsWanted());
              StartMaintenanceIfWanted();
              QUARRY_CHECK(maintenance_signal.IsOff());
              QUARRY_CHECK(DirtyBytes() != 0);
              QUARRY_CHECK(Soon([] {
                StartMaintenanceIfWanted();
                return DirtyBytes() == 0;
              }));
              QUARRY_CHECK(MaintenanceThreads().empty());
            }),
            0);
}

TEST(Maintenance, ASlowPathPurgesOneStepAndTheNextGoesOn) {
  EXPECT_EQ(InChild([] {
              constexpr size_t kStep = Arena::kPurgeStepBytes;
              settings.decay_ms = 60000;
              maintenance_signal.TurnOff();
              MakeDirty(3 * kStep, 0);
              MakeDirty(kStep, 1);
              KeepHugeBlock();
              const uint32_t freed_ms = NowMs();
              StartMaintenanceIfWanted();
              QUARRY_CHECK(DirtyBytes() == 4 * kStep);
              settings.decay_ms = 40;
              while (AgeMs(freed_ms, NowMs()) < 100) usleep(1000);
              for (size_t left = 4; left > 0; --left) {
                StartMaintenanceIfWanted();
                QUARRY_CHECK(DirtyBytes() == (left - 1) * kStep);
                QUARRY_CHECK(huge_blocks.statistics().cached_bytes == 0);
              }
            }),
            0);
}

TEST(Maintenance, ASlowPathTidiesSomeCachesAndTheNextGoesOn) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 20;
              maintenance_signal.TurnOff();
              constexpr size_t kThreads = 20;
              StartThreadsThatWait(kThreads);
              const auto count_untidy = [] {
                size_t count = 0;
                cache_registry.ForEach([&](ThreadCache* cache) {
                  if (cache != thread_state.cache && !cache->IsTidy()) ++count;
                });
                return count;
              };
              size_t untidy = count_untidy();
              QUARRY_CHECK(untidy >= kThreads);
              QUARRY_CHECK(Soon([&] {
                StartMaintenanceIfWanted();
                const size_t before = std::exchange(untidy, count_untidy());
                QUARRY_CHECK(before - untidy <= 4);
                return untidy == 0;
              }));
            }),
            0);
}

// In a fork's child, which is not to wait until all that the others had is given back.
TEST(Maintenance, ASlowPathClosesSomeBereftCachesAndTheNextGoesOn) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 20;
              settings.parked_caches = 1;
              constexpr size_t kThreads = 20;
              StartThreadsThatWait(kThreads);
              const int status = InChild([] {
                maintenance_signal.TurnOff();
                const auto count_bereft = [] {
                  size_t count = 0;
                  cache_registry.ForEach(
                      [&](ThreadCache* cache) { count += cache->is_bereft; });
                  return count;
                };
                size_t bereft = count_bereft();
                QUARRY_CHECK(bereft == kThreads);
                QUARRY_CHECK(Soon([&] {
                  StartMaintenanceIfWanted();
                  const size_t before = std::exchange(bereft, count_bereft());
                  QUARRY_CHECK(before - bereft <= 4);
                  return bereft == 0;
                }));
                VerifyAll();
              });
              QUARRY_CHECK(status == 0);
            }),
            0);
}

TEST(Maintenance, SlowPathsTickWhereItCannotBeStarted) {
  if (kUnderTsan || kUnderAsan) GTEST_SKIP() << "they need address space";
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 20;
              MakeDirty(4 * kMiB);
              const rlimit none = {1, 1};
              QUARRY_CHECK(setrlimit(RLIMIT_AS, &none) == 0);
              errno = 77;
              StartMaintenanceIfWanted();
              QUARRY_CHECK(errno == 77);
              QUARRY_CHECK(maintenance_signal.IsOff());
              QUARRY_CHECK(Soon([] {
                StartMaintenanceIfWanted();
                return DirtyBytes() == 0;
              }));
            }),
            0);
}

// Has the thread wanted, and not started; then it could be.
void FailToStart() {
  settings.decay_ms = 20;
  MakeDirty(4 * kMiB);
  rlimit limit;
  QUARRY_CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
  const rlimit none = {1, limit.rlim_max};
  QUARRY_CHECK(setrlimit(RLIMIT_AS, &none) == 0);
  StartMaintenanceIfWanted();
  QUARRY_CHECK(maintenance_signal.IsOff());
  QUARRY_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

TEST(Maintenance, ItIsTriedAgainAfterAWhile) {
  if (kUnderTsan || kUnderAsan) GTEST_SKIP() << "they need address space";
  EXPECT_EQ(InChild([] {
              FailToStart();
              QUARRY_CHECK(Soon([] {
                StartMaintenanceIfWanted();
                return MaintenanceThreads().size() == 1;
              }));
            }),
            0);
}

TEST(Maintenance, NotWhereTheOptionHasTurnedItOffMeanwhile) {
  if (kUnderTsan || kUnderAsan) GTEST_SKIP() << "they need address space";
  EXPECT_EQ(InChild([] {
              FailToStart();
              settings.maintenance = false;
              usleep(1'200'000);
              QUARRY_CHECK(Soon([] {
                StartMaintenanceIfWanted();
                return DirtyBytes() == 0;
              }));
              QUARRY_CHECK(maintenance_signal.IsOff());
              QUARRY_CHECK(MaintenanceThreads().empty());
            }),
            0);
}

// --- Fork and exit. ---

TEST(Maintenance, AForksChildStartsItsOwn) {
  if (kUnderTsan) GTEST_SKIP() << "a child of several threads has no others";
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 50;
              StartThread();
              MakeDirty(4 * kMiB);
              const int status = InChild([] {
                QUARRY_CHECK(MaintenanceThreads().empty());
                // Its parent's work is its own work, too.
                MakeDirty(4 * kMiB);
                QUARRY_CHECK(maintenance_signal.IsWanted());
                StartMaintenanceIfWanted();
                QUARRY_CHECK(Soon([] { return DirtyBytes() == 0; }));
                QUARRY_CHECK(MaintenanceThreads().size() == 1);
              });
              QUARRY_CHECK(status == 0);
              QUARRY_CHECK(Soon([] { return DirtyBytes() == 0; }));
            }),
            0);
}

TEST(Maintenance, AForksChildOfOneThatSleptHasNoWork) {
  EXPECT_EQ(InChild([] {
              settings.decay_ms = 0;
              StartThread();
              QUARRY_CHECK(Soon([] { return IsInState(State::kAsleep); }));
              QUARRY_CHECK(InChild([] {
                             QUARRY_CHECK(IsInState(State::kNoThread));
                           }) == 0);
              QUARRY_CHECK(IsInState(State::kAsleep));
            }),
            0);
}

TEST(Maintenance, ForksWhileItWorks) {
  EXPECT_EQ(InChild([] {
              // With 0 no huge block would be kept.
              settings.decay_ms = 1;
              StartThread();
              for (int i = 0; i < (kUnderTsan ? 20 : 300); ++i) {
                for (size_t arena = 0; arena < 4; ++arena) {
                  MakeDirty(2 * kMiB, arena);
                }
                FreeHugeBlock();  // It may be gone in a millisecond.
                usleep(static_cast<useconds_t>(i % 12) * 1000);
                const int status = InChild([i] {
                  VerifyAll();
                  huge_blocks.Verify();
                  MakeDirty(2 * kMiB);
                  for (size_t bytes = 0; bytes < 2000; bytes += 50) {
                    Free(Allocate(bytes));
                  }
                  if (kUnderTsan || i % 8 != 0) return;
                  StartMaintenanceIfWanted();
                  QUARRY_CHECK(Soon([] { return DirtyBytes() == 0; }));
                });
                QUARRY_CHECK(status == 0);
              }
            }),
            0);
}

TEST(Maintenance, TheProcessMayExitWhileItWorks) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(InChild([i] {
                settings.decay_ms = 0;
                StartThread();
                for (size_t arena = 0; arena < 4; ++arena) {
                  MakeDirty(8 * kMiB, arena);
                }
                usleep(static_cast<useconds_t>(9500 + 100 * i));
                exit(0);
              }),
              0);
  }
}

}  // namespace
}  // namespace quarry
