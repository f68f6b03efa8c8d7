"""Files that come and go: `churn.py write FOLDER ROUND MIB` writes that much in files of 4 KiB to 4 MiB; `churn.py delete FOLDER`
removes every other file; `churn.py sum FOLDER` prints a checksum of all that is there. What is written does not compress."""

import hashlib
import os
import random
import sys

POOL = 24 << 20


def files(folder):
    found = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in names]
    return sorted(name for name in found if "lost+found" not in name)


def write(folder, round_number, mib):
    dice = random.Random(int(round_number))
    pool = os.urandom(POOL)
    left, number = int(mib) << 20, 0
    while left > 0:
        size = min(left, 4096 << dice.randrange(11))
        place = os.path.join(folder, "r%s" % round_number, "%02d" % (number % 50))
        os.makedirs(place, exist_ok=True)
        at = dice.randrange(POOL - size)
        with open(os.path.join(place, "f%06d" % number), "wb") as file:
            file.write(pool[at:at + size])
        left -= size
        number += 1


def delete(folder):
    for name in files(folder)[::2]:
        os.remove(name)


def checksum(folder):
    total = hashlib.blake2b()
    for name in files(folder):
        with open(name, "rb") as file:
            total.update(name[len(folder):].encode() + hashlib.blake2b(file.read()).digest())
    print(total.hexdigest())


{"write": write, "delete": delete, "sum": checksum}[sys.argv[1]](*sys.argv[2:])
