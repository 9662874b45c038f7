#!/usr/bin/env bash
# usage: quarry_test.sh TOOLS_QUARRY PACKAGES
# The command in a workspace of its own, where Bazel and Debian's tools are
# stand-ins that record how they were called.
set -euo pipefail

# Not in TEST_TMPDIR, which may lie in a home that other users cannot read.
scratch=$(mktemp -d /tmp/quarry-test.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
repository="$scratch/a folder"
mkdir -p "$repository"/{alloc,arena,tcache,tools/bazel} "$scratch"/{bin,out}
cp -L "$1" "$2" "$repository/tools/"
touch "$repository"/{.bazelrc,BUILD,WORKSPACE} "$repository/alloc/source.cc"
ln -s "$scratch/out" "$repository/bazel-bin"
mkdir "$scratch/out/alloc"
chmod 777 "$scratch/out/alloc"
library=$scratch/out/alloc/libquarry.so
quarry=$repository/tools/quarry

stand_in() {
  cat >"$scratch/bin/$1"
  chmod 755 "$scratch/bin/$1"
}

# Any shared library that the loader accepts will do.
real=$(ldd /bin/sh | awk '/libc\.so/ { print $3 }')
stand_in bazel <<STAND_IN
#!/bin/sh
echo "\$@" >>"$scratch/bazel.log"
echo "chatter of bazel"
[ -z "\$BAZEL_FAILS" ] || { echo "the reason of the failure"; exit 1; }
cp "$real" "$library"
STAND_IN
stand_in dpkg-query <<'STAND_IN'
#!/bin/sh
shift 2
for package; do
  [ "$package" = "$MISSING" ] || echo "installed $package"
done
STAND_IN
stand_in sudo <<'STAND_IN'
#!/bin/sh
exit 1
STAND_IN
export PATH=$scratch/bin:$PATH BAZEL_FAILS='' MISSING=''

failures=0
# expect STATUS STDOUT STDERR_PATTERN COMMAND...
expect() {
  local status=$1 out=$2 pattern=$3 got=0
  shift 3
  "$@" >"$scratch/stdout" 2>"$scratch/stderr" || got=$?
  if [[ $got != "$status" || $(<"$scratch/stdout") != "$out" ||
    ! $(<"$scratch/stderr") =~ $pattern ]]; then
    echo "FAILED: $*"
    echo "status $got, expected $status; stdout, then stderr:"
    cat "$scratch/stdout" "$scratch/stderr"
    failures=$((failures + 1))
  fi
}
built_times() { wc -l <"$scratch/bazel.log"; }
silent='^$'

# A wrong command line.
expect 2 '' 'a command is missing' "$quarry"
expect 2 '' 'no command walk' "$quarry" walk
expect 2 '' 'needs a PROGRAM' "$quarry" run
expect 2 '' 'needs a PROGRAM' "$quarry" run --stats --
expect 2 '' 'no option --stat' "$quarry" run --stat true
expect 2 '' 'takes no arguments' "$quarry" lib here
expect 127 '' 'nowhere: no such program' "$quarry" run nowhere
expect 127 '' 'no such program' "$quarry" run -- --stats
expect 126 '' 'cannot be executed' "$quarry" run "$repository/BUILD"
[[ ! -e $scratch/bazel.log ]] || {
  echo "FAILED: built for a wrong command line"
  failures=$((failures + 1))
}
"$quarry" --help | grep -q '^usage: ' || failures=$((failures + 1))

# A build that fails shows why, on stderr alone.
expect 2 '' 'the reason of the failure' env BAZEL_FAILS=1 "$quarry" lib

# The first use builds, the second does not, a changed source does.
rm "$scratch/bazel.log"
expect 0 "$library" 'once' "$quarry" lib
expect 0 "$library" "$silent" "$quarry" lib
[[ $(built_times) == 1 ]] || { echo "FAILED: built twice"; failures=1; }
touch "$repository/alloc/source.cc"
expect 0 "$library" "$silent" "$quarry" lib
[[ $(built_times) == 2 ]] || { echo "FAILED: not built again"; failures=1; }

# The program gets its arguments, its name and the library, and its status
# comes back.
expect 0 '<a b><c>' "$silent" "$quarry" run -- printf '<%s><%s>' 'a b' c
expect 7 'sh' "$silent" "$quarry" run sh -c 'echo $0; exit 7'
expect 0 "$library:libm.so.6" "$silent" \
  env LD_PRELOAD=libm.so.6 "$quarry" run printenv LD_PRELOAD
# shellcheck disable=SC2016  # The program expands them.
options='[ "${QUARRY_OPTIONS##*:}" = $$ ] && echo "${QUARRY_OPTIONS%:*}"'
expect 0 "stats_at_exit:1,stats_process" "$silent" \
  "$quarry" run --stats sh -c "$options"
expect 0 "perturb:9,stats_at_exit:1,stats_process" "$silent" \
  env QUARRY_OPTIONS=perturb:9 "$quarry" run --stats -- sh -c "$options"
expect 1 '' "$silent" "$quarry" run printenv QUARRY_OPTIONS
expect 0 '--stats' "$silent" "$quarry" run echo --stats

# Without root, missing packages are named and nothing is tried.
as_user=()
((EUID != 0)) || as_user=(setpriv --reuid=65534 --clear-groups)
rm -f "$library"
chmod -R a+rX "$scratch"
expect 2 '' 'apt-get install --no-install-recommends libabsl-dev$' \
  env MISSING=libabsl-dev "${as_user[@]}" "$quarry" lib

exit $((failures != 0))
