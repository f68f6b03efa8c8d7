"""Proves that a killed server loses no acknowledged write, flushed or not.

Usage: acked.py write URI STATE     writes until the connection breaks; STATE then says what each piece may hold
       acked.py verify URI STATE    compares, after the server has been started again

Every piece has at most one write under way at a time, so it must hold its last acknowledged version, or the one that was
under way. A version fills its whole piece, so that a torn write is noticed as well. STATE.count says how many writes were
acknowledged so far, for whoever decides when to kill.
"""

import json
import random
import struct
import sys

import nbd

PIECES = 1500
IN_FLIGHT = 32


def place(index):
    """Pieces of odd sizes at odd places, side by side: neighbours share blocks."""
    return index * 5003, 1 + index * 7919 % 5003


def contents(index, version):
    word = struct.pack("<II", index, version)
    length = place(index)[1]
    return (word * (length // len(word) + 1))[:length] if version else bytes(length)


class Writer:
    def __init__(self, handle, state):
        self.handle = handle
        self.state = state
        self.acknowledged = [0] * PIECES
        self.under_way = {}
        self.count = 0
        self.version = 0

    def start(self, index):
        self.version += 1
        self.under_way[index] = version = self.version

        def done(error):
            if not error.value:
                self.acknowledged[index] = version
                del self.under_way[index]
                self.count += 1
            return 1

        data = nbd.Buffer.from_bytearray(bytearray(contents(index, version)))
        self.handle.aio_pwrite(data, place(index)[0], done)

    def run(self):
        choose = random.Random(7)
        while True:
            while self.handle.aio_in_flight() < IN_FLIGHT:
                index = choose.randrange(PIECES)
                if index not in self.under_way:
                    self.start(index)
            self.handle.poll(-1)
            if self.count % 100 == 0:
                with open(self.state + ".count", "w", encoding="utf-8") as file:
                    file.write(str(self.count))


def write(uri, state):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    handle.zero(PIECES * 5003, 0)
    writer = Writer(handle, state)
    try:
        writer.run()
    except nbd.Error as error:
        print("the server is gone:", error)
    with open(state, "w", encoding="utf-8") as file:
        json.dump({"acknowledged": writer.acknowledged, "under_way": writer.under_way, "count": writer.count}, file)


def verify(uri, state):
    with open(state, encoding="utf-8") as file:
        known = json.load(file)
    handle = nbd.NBD()
    handle.connect_uri(uri)
    wrong = 0
    for index, version in enumerate(known["acknowledged"]):
        offset, length = place(index)
        found = handle.pread(length, offset)
        accepted = {version, known["under_way"].get(str(index), version)}
        if found not in [contents(index, number) for number in accepted]:
            wrong += 1
            print(f"piece {index}: {length} bytes at {offset} hold none of the versions {sorted(accepted)}, "
                  f"but begin with {bytes(found[:8]).hex()}")
    print(f"{known['count']} writes acknowledged, {len(known['under_way'])} under way, {wrong} pieces wrong")
    if wrong or not known["count"]:
        sys.exit(1)


if __name__ == "__main__":
    {"write": write, "verify": verify}[sys.argv[1]](*sys.argv[2:])
