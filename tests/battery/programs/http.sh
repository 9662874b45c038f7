#!/usr/bin/env bash
# Python's threading HTTP server, fetched by parallel curls; then file URLs.
set -eu
mkdir files
for i in $(seq 30); do seq $((i * 500)) >"files/$i.txt"; done
python3 - <<'SERVER' &
import functools, http.server, os
os.chdir("files")
class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *arguments):
    pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
with open("../port.new", "w") as port:
  port.write(str(server.server_address[1]))
os.rename("../port.new", "../port")
server.serve_forever()
SERVER
server=$!
for _ in $(seq 100); do
  [ -e port ] && break
  sleep 0.1
done
curl -sS --no-progress-meter --fail --parallel --parallel-max 8 \
  "http://127.0.0.1:$(cat port)/[1-30].txt" -o 'got_#1'
for i in $(seq 30); do cmp "files/$i.txt" "got_$i"; done
curl -sS "file://$PWD/files/30.txt" | sha256sum
curl -sS --fail "http://127.0.0.1:$(cat port)/none" || echo "curl status $?"
kill "$server"
wait "$server" || echo "server status $?"
