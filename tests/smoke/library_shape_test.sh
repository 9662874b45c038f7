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
grep -q INITFIRST <<<"$dynamic" || fail "constructors of other libraries run before its own"
! grep -q TEXTREL <<<"$dynamic" || fail "relocations in its code"

# Initial-exec storage comes out of the 1.5 KiB or so that glibc keeps free
# for libraries that are loaded late.
tls_bytes=$(awk '$1 == "TLS" { print $6 }' <<<"$segments")
((tls_bytes < 1536)) || fail "$tls_bytes bytes of thread-local storage"

# The conservative garbage collectors that programs have read all of it each time.
data_bytes=$(awk '$1 == "LOAD" && / RW / { print $6 }' <<<"$segments")
((data_bytes < 262144)) || fail "$((data_bytes)) bytes of data to write to"

! grep -q 'GNU_STACK.*RWE' <<<"$segments" || fail "executable stack"
constructors=$(nm "$library" | grep _GLOBAL__sub_I || true)
[[ -z $constructors ]] || fail "static constructors: $constructors"

# About a page that is asked for Linux maps 64 KiB of the file, as far as the segment
# goes: what few processes execute is in a segment of its own, and is not mapped where
# it is not executed.
if [[ -n $is_optimised ]]; then
  mapfile -t code < <(awk '$1 == "LOAD" && /R E/ { print $6 }' <<<"$segments")
  ((${#code[@]} == 2)) || fail "${#code[@]} segments of code, and not two"
  ((code[0] <= 65536)) || fail "$((code[0])) bytes of code for all"
  # Seldom executed code ends where code for several threads begins, at a multiple of 64
  # KiB: behind a multiple that it has outgrown lies nothing, which is mapped all the same.
  ((code[1] <= 98304)) || fail "$((code[1])) bytes of code for few"
  for program in cat "grep ^" "awk {print}"; do
    smaps=$(env -u QUARRY_OPTIONS LD_PRELOAD="$PWD/$library" $program \
      /proc/self/smaps) || fail "$program does not run"
    resident=$(awk '/^[0-9a-f]+-/ { is_code = /r-xp .*libquarry/ }
                    is_code && $1 == "Rss:" { print $2 }' <<<"$smaps")
    [[ $resident =~ ^[1-9][0-9]*$'\n'0$ ]] ||
      fail "$program has KiB of code resident: ${resident//$'\n'/ and }"
  done
fi

exit $((failures != 0))
