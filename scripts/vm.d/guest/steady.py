"""A load that must never see an error, and measures how long it had to wait.

Usage: steady.py FOLDER SYNCED STOP

Threads write blocks of known content into files of their own, some with fsync and some past the page cache, read them back past
it and compare. The file SYNCED gets a line for each fsync. When the file STOP appears, everything is read back once more, and one
line says how much was done and what the longest wait was.
"""

import mmap
import os
import random
import sys
import threading
import time

THREADS = 4
SLOW = 1.0
BLOCK = 4096
BLOCKS = 2048


def content(thread, block, version):
    """What a block holds: who, where and which, over and over."""
    word = f"{thread:4} {block:8} {version:12} ".encode()
    return (word * (BLOCK // len(word) + 1))[:BLOCK]


class Thread:
    def __init__(self, folder, number, slow):
        self.number = number
        self.slow = slow
        self.versions = {}
        self.path = os.path.join(folder, f"steady-{number}")
        self.choose = random.Random(number)
        self.buffered = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self.buffered, BLOCK * BLOCKS)
        os.fsync(self.buffered)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.memory = mmap.mmap(-1, BLOCK)   # aligned, as O_DIRECT wants it
        self.requests = 0
        self.longest = 0.0
        self.error = None

    def timed(self, request, *arguments):
        begun = time.time()
        result = request(*arguments)
        ended = time.time()
        self.longest = max(self.longest, ended - begun)
        if ended - begun >= SLOW:
            self.slow.write(f"{begun} {ended}\n")
        self.requests += 1
        return result

    def write(self, version, direct):
        block = self.choose.randrange(BLOCKS)
        self.memory[:] = content(self.number, block, version)
        self.timed(os.pwrite, self.direct if direct else self.buffered, memoryview(self.memory), block * BLOCK)
        self.versions[block] = version

    def verify(self, block):
        expected = content(self.number, block, self.versions[block])
        self.timed(os.preadv, self.direct, [self.memory], block * BLOCK)
        if self.memory[:] != expected:
            raise OSError(f"block {block} of {self.path} holds {self.memory[:40]!r}, not {expected[:40]!r}")

    def run(self, synced, stop):
        try:
            version = 0
            while not os.path.exists(stop):
                version += 1
                for _ in range(4):
                    self.write(version, direct=False)
                self.timed(os.fsync, self.buffered)
                self.write(version, direct=True)
                os.write(synced, f"{self.number}\n".encode())
                self.verify(self.choose.choice(list(self.versions)))
            self.timed(os.fsync, self.buffered)
            for block in self.versions:
                self.verify(block)
        except Exception as error:  # whatever it is, the story is over
            self.error = error


def main(folder, synced, stop):
    slow = open(f"{synced}.slow", "w", buffering=1)
    synced = os.open(synced, os.O_WRONLY | os.O_APPEND)
    workers = [Thread(folder, number, slow) for number in range(THREADS)]
    threads = [threading.Thread(target=worker.run, args=(synced, stop)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [f"thread {worker.number}: {worker.error!r}" for worker in workers if worker.error]
    if errors:
        sys.exit("\n".join(errors))
    requests = sum(worker.requests for worker in workers)
    longest = max(worker.longest for worker in workers)
    print(f"no error in {requests} requests; the longest took {longest:.1f} s")


main(*sys.argv[1:])
