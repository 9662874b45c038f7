#!/usr/bin/env bash
# usage: preload_test.sh SHARED_LIBRARY PROGRAM FORK_HANDLERS FORK_HANDLERS_LINKED
# The program passes with the library preloaded: as it is, in 1 GiB of address
# space, and in a shell of few resources. Programs get no more with it than needed.
set -euo pipefail

library=$(readlink -f "$1")
program=$2
fork_handlers=$3
fork_handlers_linked=$4
failures=0

passes_with() {
  local what=$1
  shift
  if ! (
    "$@"
    # Several tests report to one file otherwise.
    unset XML_OUTPUT_FILE
    LD_PRELOAD=$library exec "$program"
  ); then
    echo "FAILED: $what"
    failures=$((failures + 1))
  fi
}

passes_with "preloaded" true
passes_with "in 1 GiB of address space" ulimit -v 1048576
passes_with "with 64 KiB of locked memory" ulimit -l 64
passes_with "with a stack of 256 KiB" ulimit -s 256

# A C program that preloads the library loads no C++ runtime.
mapped=$(LD_PRELOAD=$library cat /proc/self/maps)
grep -qF "$library" <<<"$mapped" || {
  echo "FAILED: cat runs without the library"
  failures=$((failures + 1))
}
! grep -F libstdc++ <<<"$mapped" || {
  echo "FAILED: libstdc++ came along"
  failures=$((failures + 1))
}

# The first handlers that a program or a library registers may wait for its other threads.
LD_PRELOAD=$library timeout 60 "$fork_handlers" || {
  echo "FAILED: fork handlers, status $?"
  failures=$((failures + 1))
}
timeout 60 "$fork_handlers_linked" || {
  echo "FAILED: fork handlers of a program with the heap in it, status $?"
  failures=$((failures + 1))
}

# Before libc knows the environment, the options are those of the process.
for preload in "LD_PRELOAD=$library true" "LD_PRELOAD= $fork_handlers_linked"; do
  page=$(env QUARRY_OPTIONS=help:1 "${preload%% *}" timeout 60 "${preload#* }" 2>&1) || true
  grep -qF 'quarry: options, as in' <<<"$page" || {
    echo "FAILED: no options for $preload: $page"
    failures=$((failures + 1))
  }
done

# What allocates nothing has no heap. By env, since true is a builtin, too.
page=$(env QUARRY_OPTIONS=stats_at_exit:1 "LD_PRELOAD=$library" true 2>&1)
grep -qF 'now: 0 threads, 0 arenas, 0 segments' <<<"$page" || {
  echo "FAILED: a heap for a program that allocates nothing: $page"
  failures=$((failures + 1))
}
exit $((failures != 0))
