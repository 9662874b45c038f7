"""The table of the battery: one case per kind of program."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
  """A bash script and what to expect of it.

  It runs under `set -eu` in an empty folder; $PROGRAMS is the folder of the
  helper programs. It should print what it computed, and nothing that differs
  from run to run but what `normalise` names.
  """
  name: str
  programs: tuple      # Must be seen to start with the library.
  script: str
  normalise: tuple = ()  # (pattern, replacement) on stdout and stderr.
  status: object = 0


CASES = (
    # Version control.
    Case("git", ("git",), r"""
export GIT_AUTHOR_DATE='2024-01-01T00:00:00Z' GIT_COMMITTER_DATE='2024-01-01T00:00:00Z'
git config --global user.name quarry
git config --global user.email quarry@example.com
git config --global init.defaultBranch main
git config --global gc.auto 0
git config --global pack.threads 2
git init -q origin && cd origin
for i in $(seq 60); do
  mkdir -p d$((i % 7))
  seq $((i * 37)) $((i * 53 + 400)) > d$((i % 7))/f$((i % 23))
  git add . && git commit -qm "commit $i"
done
git checkout -qb side HEAD~20 && echo side > side && git add . && git commit -qm side
git checkout -q main && git merge -q --no-edit side
cd .. && git clone -q "file://$PWD/origin" copy && cd copy
git gc -q --aggressive
git fsck --full --strict
git rev-list --objects --all | sha256sum
git log --stat -p | sha256sum
git blame d1/f1 | sha256sum
git grep --threads=2 -c 77 | sha256sum
git status --short && git verify-pack -s .git/objects/pack/*.idx
"""),

    # Interpreters.
    Case("python-threads", ("python3",), 'python3 "$PROGRAMS/threads.py"'),
    Case("python-multiprocessing", ("python3",),
         'python3 "$PROGRAMS/multiprocess.py"'),
    Case("python-own-malloc", ("python3",),
         'PYTHONMALLOC=malloc python3 "$PROGRAMS/text_work.py"'),
    Case("python-imports", ("python3",), 'python3 "$PROGRAMS/imports.py"'),
    Case("python-fork-in-threads", ("python3",),
         'PYTHONMALLOC=malloc python3 "$PROGRAMS/fork_in_threads.py"'),
    Case("perl", ("perl",), 'perl "$PROGRAMS/words.pl"'),
    Case("perl-threads", ("perl",), 'perl "$PROGRAMS/threads.pl"'),
    Case("php", ("php",), r"""
php -d memory_limit=-1 "$PROGRAMS/records.php"
USE_ZEND_ALLOC=0 php "$PROGRAMS/records.php"
"""),
    Case("node-workers", ("node",), 'node "$PROGRAMS/workers.js"'),
    Case("ruby", ("ruby",), 'ruby "$PROGRAMS/objects.rb"'),
    Case("lua", ("lua5.4",), 'lua5.4 "$PROGRAMS/trees.lua"'),
    # Its garbage collector looks through all data of all libraries.
    Case("guile", ("guile",), 'guile --no-auto-compile "$PROGRAMS/strings.scm"'),
    Case("java", ("java",), r"""
java -version
java -Xmx256m "$PROGRAMS/Streams.java"
"""),

    # Compilers and builders.
    Case("g++", ("cc1plus", "as", "ld", "program"), r"""
g++ -std=c++20 -O2 -g -pthread "$PROGRAMS/containers.cc" -o program
sha256sum program
exec ./program
"""),
    Case("clang++", ("clang++-19", "program"), r"""
clang++-19 -std=c++20 -O2 -g -pthread "$PROGRAMS/containers.cc" -o program
sha256sum program
./program
"""),
    Case("g++-lto", ("lto1", "program"), r"""
g++ -std=c++20 -O2 -flto=2 -pthread "$PROGRAMS/containers.cc" -o program
./program
"""),
    Case("cmake", ("cmake", "ninja"), r"""
cp -r "$PROGRAMS/cmake_project" source
cmake -S source -B build -G Ninja -DCMAKE_BUILD_TYPE=Release
cmake --build build -j 2
cd build && ctest --output-on-failure
""", normalise=((r"\d+\.\d+ (s(ec)?)\b", r"N \1"),
                (r"(done) \(\d+\.\d+s\)", r"\1"),
                # Two jobs end in either order.
                (r"(?m)^\[\d+/\d+\] .*\n", ""))),
    Case("make", ("make", "cc1"), r"""
for i in $(seq 30); do
  echo "int f$i(int x) { return x * $i + (x >> 1); }" > f$i.c
done
{ for i in $(seq 30); do echo "int f$i(int);"; done
  echo '#include <stdio.h>'
  echo 'int main(void) { int x = 1;'
  for i in $(seq 30); do echo "x = f$i(x) & 0xffff;"; done
  echo 'printf("%d\n", x); return 0; }'; } > main.c
printf 'program: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\t$(CC) -o $@ $(sort $^)\n' > Makefile
make -s -j2 CFLAGS=-O1
./program && sha256sum program
"""),
    Case("binutils", ("objdump", "nm", "readelf", "strip", "ar"), r"""
cp "$(command -v perl)" binary
objdump -d binary | sha256sum
readelf -aW binary | sha256sum
nm -D --synthetic binary | sha256sum
strip -o stripped binary && sha256sum stripped
ar rcs archive.a binary stripped && ar t archive.a
"""),
    Case("gdb", ("gdb",), r"""
gcc -g -O0 -pthread "$PROGRAMS/debuggee.c" -o debuggee
gdb --batch -nx -ex 'break leaf if depth == 5' -ex run -ex backtrace \
  -ex 'info locals' -ex 'print *node' -ex 'info functions leaf' -ex kill \
  ./debuggee
""", normalise=((r"0x[0-9a-f]+", "ADDRESS"), (r"(LWP|process) \d+", r"\1 N"))),

    # Databases and servers.
    Case("sqlite", ("sqlite3",), r"""
sqlite3 data.db < "$PROGRAMS/bulk.sql"
sqlite3 data.db 'pragma integrity_check; select count(*), sum(n) from items;'
sqlite3 data.db .dump | sha256sum
"""),
    Case("redis", ("redis-server", "redis-benchmark", "redis-cli"),
         'bash "$PROGRAMS/redis.sh"'),
    Case("nginx", ("nginx", "python3"), 'bash "$PROGRAMS/nginx.sh"'),
    Case("python-http", ("python3", "curl"), 'bash "$PROGRAMS/http.sh"'),

    # C++ that deletes an object by its base, with the size of that.
    Case("povray", ("povray",), r"""
export QUARRY_OPTIONS=check_sizes:0
povray +I"$PROGRAMS/spheres.pov" +Oout.ppm +FP +W160 +H120 +WT1 -D > log 2>&1
grep -av '^# ' out.ppm | sha256sum  # The comments have the date.
"""),

    # Compression and archives.
    Case("xz", ("xz",), r"""
seq 1 700000 | sed 's/7/seven/g' > data
xz -T2 -3 --block-size=1MiB -k data && sha256sum data.xz
xz -T2 -dc data.xz | cmp - data && xz -l data.xz
"""),
    Case("zstd", ("zstd",), r"""
seq 1 900000 | sed 's/3/three/g' > data
for level in 1 9 17; do
  zstd -q -T2 -$level -f data -o data.zst && sha256sum data.zst
  zstd -q -T2 -dc data.zst | cmp - data
done
zstd -q --train -B1024 data -o dictionary && sha256sum dictionary
"""),
    Case("tar-gzip-bzip2", ("tar", "gzip", "bzip2"), r"""
mkdir tree && cp -r /usr/lib/python3/../python3.11/{json,email,asyncio} tree/
find tree -name __pycache__ -prune -exec rm -rf {} +
tar --sort=name --owner=0 --group=0 --mtime=@0 -cf tree.tar tree
sha256sum tree.tar && gzip -kn9 tree.tar && sha256sum tree.tar.gz
bzip2 -k tree.tar && sha256sum tree.tar.bz2
mkdir a b && tar -xzf tree.tar.gz -C a && tar -xjf tree.tar.bz2 -C b
diff -r tree a/tree && diff -r tree b/tree && echo equal
"""),
    Case("dpkg-deb", ("dpkg-deb",), r"""
mkdir -p package/DEBIAN package/usr/share/doc
printf '%s\n' 'Package: quarry-battery' 'Version: 1' 'Architecture: all' \
  'Maintainer: q <q@example.com>' 'Description: none' > package/DEBIAN/control
seq 200000 > package/usr/share/doc/numbers
export SOURCE_DATE_EPOCH=0
dpkg-deb --root-owner-group -Zxz -b package one.deb
dpkg-deb -I one.deb && dpkg-deb -c one.deb && sha256sum one.deb
"""),

    # Text.
    Case("sort", ("sort",), r"""
seq 1 400000 | awk '{ print ($1 * 7919) % 1000003, $1 }' > data
sort --parallel=2 -S 64M -k1,1n -k2,2 data | sha256sum
sort --parallel=2 -S 2M -T . -r data | sha256sum
LC_ALL=en_US.UTF-8 sort -u data | sha256sum
"""),
    Case("awk", ("gawk",), r"""
seq 1 300000 | gawk '{ words["w" ($1 * 31) % 5003] += $1 }
  END { n = asorti(words, keys)
        for (i = 1; i <= n; i++) print keys[i], words[keys[i]] }' | sha256sum
seq 1 50000 | gawk '{ s = s $1 }
  END { print length(s), gsub(/1[0-9]*2/, "", s), length(s) }'
"""),
    Case("sed-grep-diff", ("sed", "grep", "diff", "patch"), r"""
seq 1 60000 > a
sed -E 's/([0-9])\1/<\1>/g; 100~97d; 50~89i inserted' a > b
grep -cP '(\d)(?=.*\1)' a; grep -oE '<[0-9]>' b | sort | uniq -c
diff -u --label a --label b a b > changes || test $? = 1
sha256sum changes && patch -s a changes && cmp a b && echo patched
"""),
    Case("jq", ("jq",), r"""
jq -n '[range(30000) | {id: ., name: ("n" + tostring), tags: [range(. % 5)]}]' > data.json
sha256sum data.json
jq '[.[] | select(.id % 3 == 0)] | group_by(.tags | length) |
  map({n: length, sum: (map(.id) | add)})' data.json
jq -r '.[] | [.id, .name] | @csv' data.json | sha256sum
"""),
    Case("vim", ("vim",), r"""
seq 1 20000 > text
vim -es -u NONE -i NONE -c 'g/7/normal Aseven' -c '%s/\v(\d)(\d)/\2\1/g' \
  -c '1,500sort' -c 'g/^9/m0' -c 'undo' -c 'redo' -c wq text
sha256sum text && head -3 text
"""),
    Case("ed", ("ed",), r"""
seq 1 5000 > text
printf 'g/3/s//three/g\n1,100m$\n,n\nw\nq\n' | ed -s text | sha256sum
sha256sum text
"""),

    # Shells and processes.
    Case("bash-forks", ("bash", "cat"), r"""
total=0
for i in $(seq 1 400); do
  value=$( (echo $((i * i)) | cat) )
  total=$((total + value))
done
echo $total
declare -A table
for i in $(seq 1 20000); do table[k$((i % 997))]+=$i; done
echo ${#table[@]} "$(printf '%s' "${table[@]}" | wc -c)"
for i in 1 2 3 4; do ( exec bash -c "exit $i" ) & done
wait && echo done
"""),
    Case("find-xargs", ("find", "xargs", "sha256sum"), r"""
find /usr/lib/python3.11 -name '*.py' -print0 |
  xargs -0 -P2 -n20 sha256sum | sort | sha256sum
find /usr/include -type f -size -3k | sort | xargs -n500 wc -c | tail -1
"""),
    Case("rsync", ("rsync",), r"""
mkdir source && cp -r /usr/lib/python3.11/{json,email,unittest} source/
find source -name __pycache__ -prune -exec rm -rf {} +
rsync -a source/ copy/ && echo changed >> source/json/__init__.py
rsync -ac --itemize-changes --out-format=%n source/ copy/
rsync -a --delete --exclude '*.py' --delete-excluded source/ copy/
find copy -type f | wc -l
"""),

    # Mathematics and cryptography.
    Case("openssl", ("openssl",), r"""
seq 1 300000 > data
for cipher in aes-256-cbc chacha20 aes-256-ctr; do
  openssl enc -$cipher -K "$(printf '%064d' 7)" -iv "$(printf '%032d' 1)" \
    -in data -out data.$cipher
  sha256sum data.$cipher
done
openssl dgst -sha3-256 data
openssl genrsa -out key.pem 2048 2>/dev/null
openssl dgst -sha256 -sign key.pem -out signature data
openssl rsa -in key.pem -pubout -out public.pem 2>/dev/null
openssl dgst -sha256 -verify public.pem -signature signature data
openssl req -x509 -new -key key.pem -subj /CN=quarry -days 1 -out certificate.pem
openssl verify -CAfile certificate.pem certificate.pem
openssl speed -seconds 1 -bytes 256 sha256 > /dev/null 2>&1 && echo measured
"""),
    Case("bc", ("bc",), r"""
echo 'scale=1500; 4*a(1)' | bc -lq | sha256sum
echo '2^20000 % (10^50 + 151)' | bc -q
"""),
    Case("z3", ("z3",), 'z3 -smt2 "$PROGRAMS/puzzle.smt2"'),
)
