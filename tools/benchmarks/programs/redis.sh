#!/usr/bin/env bash
# A redis server under load. Prints the CPU time of the server alone, which is
# the only program here that runs with what is preloaded into this script.
set -eu

preload=${LD_PRELOAD-}
unset LD_PRELOAD
socket=$PWD/redis.sock

# Debian links it with jemalloc; libc in front of that makes it glibc's malloc.
env LD_PRELOAD="${preload:-libc.so.6}" redis-server --port 0 \
  --unixsocket "$socket" --dir "$PWD" --save '' --hz 10 >server.log 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until redis-cli -s "$socket" ping >/dev/null 2>&1; do
  kill -0 $server || { cat server.log >&2; exit 1; }
  sleep 0.05
done

load() {
  redis-benchmark -s "$socket" -q -c 20 -P 16 "$@" >/dev/null
}

load -n 200000 -r 100000 -d 200 -t set
load -n 100000 -r 20000 -d 60 -t get,incr,lpush,sadd,hset,zadd
redis-cli -s "$socket" eval '
  for i = 1, 100000 do
    redis.call("set", "k" .. i % 30000, string.rep("v", i * 7919 % 2000))
    redis.call("hset", "h" .. i % 500, "f" .. i % 7000, i)
    if i % 3 == 0 then redis.call("del", "k" .. i * 31 % 30000) end
  end' 0 >/dev/null
redis-cli -s "$socket" info cpu | tr -d '\r' | awk -F: '
  /^used_cpu_(user|sys):/ { seconds += $2 }
  END { printf "time %.1f ms\n", seconds * 1000 }'
redis-cli -s "$socket" shutdown nosave >/dev/null 2>&1 || true
wait $server
