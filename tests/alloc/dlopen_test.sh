#!/usr/bin/env bash
# usage: dlopen_test.sh SHARED_LIBRARY HOST
# Libraries that are opened with RTLD_DEEPBIND have the malloc of the program that
# opens them, unless an option says otherwise. See dlopen_host.c.
set -euo pipefail

library=$(readlink -f "$1") host=$(readlink -f "$2")
failures=0

# check WHAT own|libc VARIABLE=VALUE...
check() {
  local what=$1 whose=$2
  shift 2
  env "$@" "$host" "$whose" || {
    echo "FAILED: $what, status $?"
    failures=$((failures + 1))
  }
}

check "with libc's malloc" own
check "preloaded" own "LD_PRELOAD=$library"
check "told not to" own QUARRY_OPTIONS=deepbind:0 "LD_PRELOAD=$library"
check "told to" libc QUARRY_OPTIONS=deepbind:1 "LD_PRELOAD=$library"
exit $((failures != 0))
