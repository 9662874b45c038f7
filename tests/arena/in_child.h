#ifndef QUARRY_TESTS_ARENA_IN_CHILD_H_
#define QUARRY_TESTS_ARENA_IN_CHILD_H_

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace quarry {

// The exit status of a child process, as waitpid() tells it.
inline int StatusOf(pid_t child) {
  int status = -1;
  while (waitpid(child, &status, 0) != child && errno == EINTR) {
  }
  return status;
}

// Runs `step` in a child process, in which it may start what cannot be stopped.
// Returns the child's status: 0 unless it crashed or a check failed.
template <typename Step>
int InChild(Step step) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    step();
    _exit(0);
  }
  return StatusOf(child);
}

// Whether `happened` comes true, if one waits long enough for a slow machine.
template <typename Condition>
bool Soon(Condition happened) {
  for (int i = 0; i < 6000; ++i) {
    if (happened()) return true;
    const timespec pause = {0, 5000000};
    nanosleep(&pause, nullptr);
  }
  return false;
}

}  // namespace quarry

#endif  // QUARRY_TESTS_ARENA_IN_CHILD_H_
