#!/usr/bin/env bash
# A redis server under load, its data checked, saved, and read back.
# redis-tools holds the server too: one binary that goes by its name.
set -eu
ln -s "$(command -v redis-check-rdb)" redis-server
socket=$PWD/redis.sock

start() {
  ./redis-server --port 0 --unixsocket "$socket" --dir "$PWD" --lazyfree-lazy-user-del yes \
    --save '' --enable-debug-command yes --logfile server.log &
  server=$!
  for _ in $(seq 100); do
    redis-cli -s "$socket" ping >/dev/null 2>&1 && return
    sleep 0.1
  done
  cat server.log >&2
  exit 1
}

ask() { redis-cli -s "$socket" "$@"; }

start
redis-benchmark -s "$socket" -q -n 8000 -c 20 -P 8 -r 5000 -d 200 --threads 2 \
  -t set,get,incr,lpush,sadd,hset,zadd,lrange_100 >/dev/null
ask flushall async
ask eval 'for i = 1, 20000 do
  redis.call("set", "k" .. i, string.rep("v", i % 900))
  redis.call("hset", "h" .. i % 50, "f" .. i, i)
  redis.call("zadd", "z", (i * 7919) % 10007, "m" .. i)
  if i % 3 == 0 then redis.call("del", "k" .. i - 2) end
end return redis.call("dbsize")' 0
ask zrange z 0 5 withscores
ask debug digest
ask bgsave >/dev/null
for _ in $(seq 100); do
  ask info persistence | grep -q rdb_bgsave_in_progress:0 && break
  sleep 0.1
done
ask save
ask shutdown nosave
wait "$server"
start
ask dbsize
ask debug digest
ask strlen k19999
ask shutdown nosave
wait "$server"
echo "status $?"
