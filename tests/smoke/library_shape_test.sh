#!/usr/bin/env bash
# usage: library_shape_test.sh SHARED_LIBRARY [optimised]
# What every program takes on when it loads the library.
set -euo pipefail

library=$1
is_optimised=${2:-}
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

dynamic=$(readelf --dynamic --wide "$library")
segments=$(readelf --segments --wide "$library")

needed=$(sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' <<<"$dynamic")
for name in $needed; do
  case $name in
    libc.so.6 | ld-linux*.so.*) ;;
    *) fail "needs $name, and not libc alone" ;;
  esac
done
grep -q 'SONAME.*\[libquarry.so\]' <<<"$dynamic" || fail "no soname"
grep -q NODELETE <<<"$dynamic" || fail "dlclose could unload it"
! grep -q TEXTREL <<<"$dynamic" || fail "relocations in its code"

# Initial-exec storage comes out of the 1.5 KiB or so that glibc keeps free
# for libraries that are loaded late.
tls_bytes=$(awk '$1 == "TLS" { print $6 }' <<<"$segments")
((tls_bytes < 1536)) || fail "$tls_bytes bytes of thread-local storage"

! grep -q 'GNU_STACK.*RWE' <<<"$segments" || fail "executable stack"
constructors=$(nm "$library" | grep _GLOBAL__sub_I || true)
[[ -z $constructors ]] || fail "static constructors: $constructors"

# Linux maps 64 KiB of a file at a time.
if [[ -n $is_optimised ]]; then
  code=$(awk '$1 == "LOAD" && /R E/ { print $3 }' <<<"$segments")
  seldom=$(readelf --sections --wide "$library" |
    awk '/ \.text\.seldom / { print "0x" $(NF - 7) }')
  [[ -n $code && -n $seldom ]] || fail "no code, or none that is seldom used"
  ((seldom - code < 65536)) || fail "$((seldom - code)) bytes of code for all"
fi

exit $((failures != 0))
