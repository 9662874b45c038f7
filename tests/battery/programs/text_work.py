"""json, re, big integers, sorting and garbage: every object from malloc."""

import collections
import decimal
import gc
import hashlib
import json
import random
import re

random.seed(7)
words = ["".join(random.choices("abcdefghij", k=random.randint(1, 12)))
         for _ in range(40_000)]
text = " ".join(words)

print(len(re.findall(r"\b(\w)\w*\1\b", text)),
      hashlib.sha256(re.sub(r"[aeiou]+", "*", text).encode()).hexdigest())
print(collections.Counter(words).most_common(5))

tree = {"words": words[:5000],
        "nested": [{"i": i, "square": i * i, "text": words[i]}
                   for i in range(8000)]}
for _ in range(4):
  tree = json.loads(json.dumps(tree, indent=1, sort_keys=True))
print(hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest())

value = 3 ** 20_000
print(value % (10 ** 40), len(hex(value)))
decimal.getcontext().prec = 400
print(decimal.Decimal(2).sqrt())


class Node:

  def __init__(self, depth):
    self.children = [Node(depth - 1) for _ in range(3)] if depth else []
    self.parent = None
    for child in self.children:
      child.parent = self

  def Count(self):
    return 1 + sum(child.Count() for child in self.children)


for _ in range(5):
  print(Node(8).Count())
  gc.collect()

rows = [(random.random(), i, str(i)) for i in range(60_000)]
rows.sort()
del rows[::2]
rows.sort(key=lambda row: row[2])
print(rows[:2], len(rows))
buffer = bytearray()
for i in range(200_000):
  buffer += b"%d," % i
print(hashlib.sha256(buffer).hexdigest())
