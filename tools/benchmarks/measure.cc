// Runs a program and reports its time and its peak resident set.
//
//   measure REPORT PRELOAD PROGRAM [ARGS...]
//
// PROGRAM is found on PATH and runs with LD_PRELOAD=PRELOAD, or without LD_PRELOAD
// when PRELOAD is empty. The file REPORT receives one line
// `STATUS WALL_NS CPU_NS PEAK_RSS_KIB`; STATUS is the exit status, or 128 plus the
// signal that ended the program.
//
// Static and tiny on purpose: the kernel starts a process's peak resident set with
// the peak of what it was before exec, so a large parent makes its child large.

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace {

long long WallNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

long long Ns(const timeval& time) { return time.tv_sec * 1'000'000'000LL + time.tv_usec * 1000LL; }

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    dprintf(STDERR_FILENO, "usage: measure REPORT PRELOAD PROGRAM [ARGS...]\n");
    return 2;
  }
  // Opened before the start so that a wrong path is known at once; the program does not inherit it.
  const int report = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (report < 0) {
    perror("measure: report file");
    return 2;
  }
  if (*argv[2] != '\0') {
    setenv("LD_PRELOAD", argv[2], 1);
  } else {
    unsetenv("LD_PRELOAD");
  }

  const long long start_ns = WallNs();
  const pid_t child = vfork();
  if (child < 0) {
    perror("measure: vfork");
    return 2;
  }
  if (child == 0) {
    execvp(argv[3], argv + 3);
    _exit(127);
  }
  int status;
  rusage usage;
  if (wait4(child, &status, 0, &usage) != child) {
    perror("measure: wait4");
    return 2;
  }
  const long long wall_ns = WallNs() - start_ns;
  dprintf(report, "%d %lld %lld %ld\n",
          WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), wall_ns,
          Ns(usage.ru_utime) + Ns(usage.ru_stime), usage.ru_maxrss);
  return 0;
}
