"""Writes text for a packer to work on: text.py FILE MEGABYTES."""

import random
import sys


def main():
    numbers = random.Random(1)
    words = ["".join(numbers.choices("abcdefghij", k=numbers.randint(2, 9))) for _ in range(3000)]
    size = int(sys.argv[2]) * 1000000
    with open(sys.argv[1], "w", encoding="ascii") as file:
        while file.tell() < size:
            file.write(" ".join(numbers.choices(words, k=1000)) + "\n")


main()
