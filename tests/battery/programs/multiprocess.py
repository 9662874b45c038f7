"""Pools of processes, forked and spawned, with shared memory and queues."""

import multiprocessing
from multiprocessing import shared_memory


def Work(n):
  primes = [p for p in range(2, 300 + n) if all(p % q for q in range(2, p))]
  return n, sum(primes), {str(p): [p] * 3 for p in primes[:5]}


def Fill(name, value):
  block = shared_memory.SharedMemory(name=name)
  block.buf[value] = value
  block.close()


def Main():
  for method in ("fork", "spawn", "forkserver"):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
      print(method, pool.map(Work, range(60), chunksize=7)[-1])
  context = multiprocessing.get_context("fork")
  block = shared_memory.SharedMemory(create=True, size=64)
  children = [context.Process(target=Fill, args=(block.name, i))
              for i in range(32)]
  for child in children:
    child.start()
  for child in children:
    child.join()
  print(list(block.buf[:32]), [child.exitcode for child in children])
  block.close()
  block.unlink()


if __name__ == "__main__":
  Main()
