"""Fetches files over a unix socket from several threads; prints a digest."""

import gzip
import hashlib
import http.client
import socket
import sys
import threading

digests = {}


class Connection(http.client.HTTPConnection):

  def connect(self):
    self.sock = socket.socket(socket.AF_UNIX)
    self.sock.connect(sys.argv[1])


def Fetch(worker):
  digest = hashlib.sha256()
  connection = Connection("localhost")
  for i in range(400):
    packed = i % 2 == 0
    connection.request("GET", f"/{i % 41 + 1}.txt",
                       headers={"Accept-Encoding": "gzip"} if packed else {})
    response = connection.getresponse()
    body = response.read()
    if response.getheader("Content-Encoding") == "gzip":
      body = gzip.decompress(body)
    digest.update(f"{response.status} {len(body)} ".encode())
    digest.update(body if response.status == 200 else b"")
  connection.close()
  digests[worker] = digest.hexdigest()


threads = [threading.Thread(target=Fetch, args=(n,)) for n in range(8)]
for thread in threads:
  thread.start()
for thread in threads:
  thread.join()
for worker in sorted(digests):
  print(worker, digests[worker])
