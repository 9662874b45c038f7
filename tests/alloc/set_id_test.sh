#!/usr/bin/env bash
# usage: set_id_test.sh SHARED_LIBRARY HOST
# A program that gives up rights of its own and then changes its user is told what it
# is with libc's malloc. See set_id_host.c.
set -euo pipefail

library=$(readlink -f "$1") host=$(readlink -f "$2")
failures=0

# check WHAT VARIABLE=VALUE...
check() {
  local what=$1 status=0
  shift
  env "$@" "$host" || status=$?
  if ((status == 3)); then
    echo "SKIPPED: $what: needs the right to change its user"
  elif ((status != 0)); then
    echo "FAILED: $what, status $status"
    failures=$((failures + 1))
  fi
}

check "with libc's malloc" QUARRY_OPTIONS=
check "preloaded" "LD_PRELOAD=$library"
check "without the thread" QUARRY_OPTIONS=maintenance:0 "LD_PRELOAD=$library"
exit $((failures != 0))
