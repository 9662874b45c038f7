#!/usr/bin/env bash
# usage: cxx_runtime_test.sh SHARED_LIBRARY C_HOST CXX_PLUGIN STATIC_PROGRAM
# operator new out of memory: in a process without a C++ runtime, in one that
# loads a runtime after Quarry, and in a static program.
set -uo pipefail

library=$(readlink -f "$1") host=$2 plugin=$(readlink -f "$3") static_program=$4
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

if readelf --dynamic --wide "$host" | grep -q 'NEEDED.*libstdc++'; then
  fail "$host has a C++ runtime, so it shows nothing"
fi

LD_PRELOAD=$library "$host" "$plugin" ||
  fail "expectation $? of a plug-in that brings its runtime along"

said=$({ LD_PRELOAD=$library "$host"; } 2>&1)
status=$?
expected="quarry: no memory for operator new of 4611686018427387903 bytes, \
and no C++ runtime to throw std::bad_alloc, aborting"
[[ $(head -n 1 <<<"$said") == "$expected" ]] || fail "said: $said"
((status == 128 + 6)) || fail "ended with $status and not by abort"

"$static_program" || fail "expectation $? in a static program"

exit $((failures != 0))
