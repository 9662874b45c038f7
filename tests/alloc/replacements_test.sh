#!/usr/bin/env bash
# usage: replacements_test.sh SHARED_LIBRARY PROGRAM LINKED STATIC OWN_MALLOC
# A program's own operator new and delete are called by all forms that it does not
# have: with the library preloaded, and linked with Quarry (replaced_operators.cc). So
# is its own realloc() by calls that it does not have (replaced_malloc.c).
set -euo pipefail

library=$(readlink -f "$1") program=$(readlink -f "$2")
failures=0

# check WHAT COMMAND...
# The loader says so if it cannot preload.
check() {
  local what=$1 output status=0
  shift
  output=$("$@" 2>&1) || status=$?
  [[ $status == 0 && -z $output ]] || {
    echo "FAILED: $what, status $status: $output"
    failures=$((failures + 1))
  }
}

check "with libc's malloc" "$program"
check "preloaded" env "LD_PRELOAD=$library" "$program"
check "preloaded, on the slow path" env QUARRY_OPTIONS=perturb:90 \
  "LD_PRELOAD=$library" "$program"
check "linked" "$3"
check "linked statically" "$4"
check "its own malloc" "$5"
check "its own malloc, preloaded" env "LD_PRELOAD=$library" "$5"
exit $((failures != 0))
