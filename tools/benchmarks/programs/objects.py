"""Makes and drops Python objects of many kinds; run it with PYTHONMALLOC=malloc.

usage: objects.py [SCALE]

With that setting every object is a malloc of its own: instances and their dictionaries, tuples,
strings, integers above the small ones, lists that grow, sets, closures and frames.
"""

import sys


class Point:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x = x
        self.y = y

    def plus(self, other):
        return Point(self.x + other.x, self.y + other.y)


class Account:
    def __init__(self, name, balance):
        self.name = name
        self.balance = balance
        self.history = []

    def deposit(self, amount):
        self.balance += amount
        self.history.append((amount, self.balance))


def points(count):
    total = Point(0, 1000)
    for i in range(count):
        total = total.plus(Point(i * 1.5, i + 1000))
    return int(total.x) ^ total.y


def accounts(count):
    book = {}
    for i in range(count):
        name = "account-%d" % (i * 7919 % (count // 8))
        account = book.get(name)
        if account is None:
            account = book[name] = Account(name, i)
        account.deposit(i * 1.25)
    return sum(len(account.history) for account in book.values())


def words(count):
    text = " ".join(str(i * 2654435761 % 100003) for i in range(count))
    frequencies = {}
    for word in text.split():
        frequencies[word] = frequencies.get(word, 0) + 1
    return len({word[::-1].zfill(6) for word in sorted(frequencies)})


def matrices(count):
    checksum = 0
    for i in range(count):
        rows = [[(i + row * column) * 1009 for column in range(12)] for row in range(12)]
        checksum ^= sum(max(column) for column in zip(*rows))
    return checksum


def tree(depth):
    return (tree(depth - 1), [depth], tree(depth - 1)) if depth else None


def bignums(count):
    value = 1
    for i in range(count):
        value = (value * 6364136223846793005 + i) % (1 << 521)
    return value & 0xFFFF


def main():
    scale = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    for _ in range(scale):
        print(
            points(60000),
            accounts(40000),
            words(30000),
            matrices(1500),
            len(tree(14)),
            bignums(60000),
        )


main()
