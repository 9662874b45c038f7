# shellcheck shell=bash disable=SC2034
# The Debian packages that Quarry needs, and how they get onto the machine.
# Sourced by tools/quarry, tools/test and tools/bench; runs nothing by itself.

# To build the libraries.
QUARRY_BUILD_PACKAGES=(
  bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto
  bazel-skylib g++ libabsl-dev
)

# To build and run the tests.
QUARRY_TEST_PACKAGES=(
  "${QUARRY_BUILD_PACKAGES[@]}"
  binutils clang-19 gcc libclang-rt-19-dev libgtest-dev python3 spin valgrind
)

# The programs of tests/battery.
QUARRY_BATTERY_PACKAGES=(
  bc bzip2 cmake curl default-jdk-headless ed gawk gdb git guile-3.0 gzip jq lua5.4
  make ninja-build nginx nodejs openssl patch perl php-cli povray redis-tools rsync ruby
  sqlite3 tar vim xz-utils z3 zstd
)

# To build and run tools/bench, with Debian's other allocators.
QUARRY_BENCH_PACKAGES=(
  libbenchmark-dev libjemalloc2 libmimalloc2.0 libtbbmalloc2
  libtcmalloc-minimal4 python3 strace
)

# The real programs of tools/bench.
QUARRY_BENCH_PROGRAM_PACKAGES=(
  ghostscript lua5.4 redis-server redis-tools sqlite3 xz-utils z3
)

# Prints those of the named packages that are not installed.
missing_packages() {
  comm -23 \
    <(printf '%s\n' "$@" | sort -u) \
    <(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' "$@" \
      2>/dev/null | sed -n 's/^installed //p' | sort -u)
}

# Installs those of the named packages that are missing. Writes to stderr only.
# Without root, and without a sudo that asks nothing, says what to install and
# ends the script with status 2.
ensure_packages() {
  local missing as_root=() log
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0

  if ((EUID != 0)); then
    if ! sudo --non-interactive true 2>/dev/null; then
      printf 'quarry: these Debian packages are missing. Install them with\n' >&2
      printf '  sudo apt-get install --no-install-recommends %s\n' \
        "${missing[*]}" >&2
      exit 2
    fi
    as_root=(sudo --non-interactive)
  fi

  printf 'quarry: installing %s\n' "${missing[*]}" >&2
  log=$(mktemp)
  # A fresh machine has no package lists, an old one has lists of versions that
  # are gone: fetch them when the first attempt fails.
  if ! install_packages >"$log" 2>&1; then
    if ! { "${as_root[@]}" apt-get update && install_packages; } \
      >>"$log" 2>&1; then
      cat "$log" >&2
      rm -f "$log"
      printf 'quarry: apt-get could not install %s\n' "${missing[*]}" >&2
      exit 2
    fi
  fi
  rm -f "$log"
}

# Reads `missing` and `as_root` of ensure_packages. Servers among the packages
# are for the tests to start: no service of the machine is started or enabled.
install_packages() (
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get --option DPkg::Lock::Timeout=300 install --yes \
    --no-install-recommends "${missing[@]}" </dev/null || exit
  if [[ " ${missing[*]} " == *" nginx "* ]] && command -v systemctl; then
    "${as_root[@]}" systemctl disable --quiet nginx.service || true
  fi
)
