#!/usr/bin/env bash
# nginx with two workers, its files fetched by many connections at once.
set -eu
mkdir -p files logs
for i in $(seq 40); do seq $((i * 100)) >"files/$i.txt"; done
cat >nginx.conf <<CONF
worker_processes 2;
pid $PWD/nginx.pid;
error_log $PWD/logs/error.log;
events { worker_connections 128; }
http {
  access_log off;
  client_body_temp_path $PWD/logs/body;
  proxy_temp_path $PWD/logs/proxy;
  fastcgi_temp_path $PWD/logs/fastcgi;
  uwsgi_temp_path $PWD/logs/uwsgi;
  scgi_temp_path $PWD/logs/scgi;
  gzip on;
  gzip_types text/plain;
  server {
    listen unix:$PWD/nginx.sock;
    root $PWD/files;
  }
}
CONF
[ "$(id -u)" != 0 ] || sed -i '1i user root;' nginx.conf
nginx -e "$PWD/logs/error.log" -p "$PWD" -c "$PWD/nginx.conf" -g 'daemon off;' &
server=$!
for _ in $(seq 100); do
  [ -S nginx.sock ] && break
  sleep 0.1
done
python3 "$PROGRAMS/http_load.py" nginx.sock
kill -QUIT "$server"
wait "$server"
echo "status $?"
