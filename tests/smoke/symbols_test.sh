#!/usr/bin/env bash
# usage: symbols_test.sh LIST SHARED_LIBRARY ARCHIVE STATIC_PROGRAM
# The shared library and the archive define every symbol of the list, and
# nothing else that could clash with a program's own names, but that the library
# has dlopen. The program, linked with the archive, has nothing of libc's malloc.
set -euo pipefail

list=$1 library=$2 archive=$3 program=$4
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# check FILE NAMES [OTHER_SYMBOL]
check() {
  local file=$1 names=$2 other=${3-} symbol unknown
  while read -r symbol; do
    grep -qxF -- "$symbol" <<<"$names" || fail "$file does not define $symbol"
  done < <(grep -v -e '^#' -e '^$' "$list")
  # The prefixed calls, libc's own aliases of those in the list, and what g++
  # makes unique in namespace quarry, which no tool can hide.
  unknown=$(grep -vxFf "$list" <<<"$names" |
    grep -v -e '^quarry_' -e '^__libc_' -e '^_ZNK\?6quarry' -e "^$other\$" || true)
  [[ -z $unknown ]] || fail "$file also defines $unknown"
}

check "$library" "$(nm --dynamic --defined-only "$library" | awk '{ print $3 }')" \
  dlopen
check "$archive" "$(nm --extern-only --defined-only "$archive" |
  awk 'NF == 3 { print $3 }')"

# glibc's own heap would show by its arena.
if nm --defined-only "$program" | grep -E ' (main_arena|_int_malloc)$'; then
  fail "$program contains glibc's malloc"
fi
exit $((failures != 0))
