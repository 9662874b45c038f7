"""Threads that allocate, hand objects over and let others free them."""

import hashlib
import queue
import threading
import zlib

THREADS = 6
ITEMS = 4000

inbox = queue.Queue(maxsize=200)
digests = []
lock = threading.Lock()


def Produce(seed):
  for i in range(ITEMS):
    inbox.put((seed, i, [bytes([(seed * i) % 256]) * (i % 700), {"n": i}]))
  inbox.put(None)


def Consume():
  total = 0
  while True:
    item = inbox.get()
    if item is None:
      break
    seed, i, payload = item
    total += zlib.crc32(payload[0]) * (seed + 1) + payload[1]["n"] + i
  with lock:
    digests.append(total)


def Compress(seed, results):
  data = bytes((seed + i * i) % 251 for i in range(200_000))
  results[seed] = hashlib.sha256(zlib.compress(data * 5, 6)).hexdigest()


workers = [threading.Thread(target=Produce, args=(s,)) for s in range(THREADS)]
workers += [threading.Thread(target=Consume) for _ in range(THREADS)]
for worker in workers:
  worker.start()
for worker in workers:
  worker.join()
print(sum(digests))

results = {}
for first in range(0, 40, 8):
  workers = [threading.Thread(target=Compress, args=(s, results))
             for s in range(first, first + 8)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
for seed in sorted(results):
  print(seed, results[seed])

# Many short lives.
count = 0


def Bump():
  global count
  with lock:
    count += len([object() for _ in range(50)])


for _ in range(600):
  thread = threading.Thread(target=Bump)
  thread.start()
  thread.join()
print(count)
