"""Forks again and again while other threads allocate and free."""

import os
import threading
import warnings

warnings.simplefilter("ignore")
stop = threading.Event()


def Churn(seed):
  kept = {}
  i = seed
  while not stop.is_set():
    i = (i * 1103515245 + 12345) % 2 ** 31
    kept[i % 3000] = bytes(i % 5000)


threads = [threading.Thread(target=Churn, args=(s,)) for s in range(3)]
for thread in threads:
  thread.start()
statuses = []
for n in range(60):
  child = os.fork()
  if child == 0:
    blocks = [bytes(i) for i in range(3000)]
    del blocks[::2]
    os._exit(len(blocks) % 256 ^ n)
  statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
  thread.join()
print(statuses)
