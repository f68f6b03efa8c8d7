"""The client of scripts/soak: writes pieces, and knows what was promised about each.

Pieces have odd sizes at odd places, several are written at once and one at a time in each; of each piece it is known which
versions were sent, acknowledged and flushed. After an event every piece must hold what was promised for such an event, or
something that was sent later.
"""

import struct
import sys
import time

import nbd

PIECES = 800
STEP = 5003
SIZE = 64 << 20
IN_FLIGHT = 16
# A server that is asked to start, to stop, or to answer does so within this time.
PATIENCE = 180


class Failure(Exception):
    """What was promised is not so."""


def fail(text):
    raise Failure(text)


def place(index):
    return index * STEP, 1 + index * 7919 % STEP


def contents(index, version):
    length = place(index)[1]
    if not version:
        return bytes(length)
    word = struct.pack("<II", index, version)
    return (word * (length // len(word) + 1))[:length]


class Client:
    """What was sent, acknowledged and flushed, piece by piece; versions only grow."""

    def __init__(self, choose):
        self.choose = choose
        self.acknowledged, self.flushed = [0] * PIECES, [0] * PIECES
        self.sent = [{0} for _ in range(PIECES)]
        self.version, self.requests, self.bytes = 0, 0, 0
        self.busy, self.refused, self.flushing = set(), [], []

    def start(self, handle, index):
        self.version += 1
        version, data = self.version, bytearray(contents(index, self.version))
        self.sent[index].add(version)
        self.busy.add(index)

        def done(error):
            self.busy.discard(index)
            if error.value:
                self.refused.append(f"write: error {error.value}")
            else:
                self.acknowledged[index] = version
                self.requests += 1
                self.bytes += len(data)
            return 1

        handle.aio_pwrite(nbd.Buffer.from_bytearray(data), place(index)[0], done)

    def flush(self, handle):
        before = list(self.acknowledged)
        self.flushing.append(1)

        def done(error):
            self.flushing.clear()
            if error.value:
                self.refused.append(f"flush: error {error.value}")
            else:
                self.flushed = before
            return 1

        handle.aio_flush(done)

    def write(self, handle, *steps, strict=False):
        """Writes until the connection ends or refuses, or all steps are done. A step is (seconds, action): after so many
        seconds the action is done, or nothing if it is None. Until the first action the server must do its work; a strict
        one must do it to the end, and then flush: so whatever was done to it is over.
        """
        self.busy, self.refused, self.flushing = set(), [], []
        left = list(steps)
        due = time.monotonic() + left[0][0]
        try:
            while left and not self.refused:
                while len(self.busy) < IN_FLIGHT:
                    index = self.choose.randrange(PIECES)
                    if index not in self.busy:
                        self.start(handle, index)
                if not self.flushing and self.choose.randrange(20) == 0:
                    self.flush(handle)
                handle.poll(200)
                if time.monotonic() > due:
                    _, action = left.pop(0)
                    if action:
                        action()
                    due = time.monotonic() + left[0][0] if left else None
            if strict:
                self.settle(handle)
        except nbd.Error as error:
            self.refused.append(str(error))
        if len(left) == len(steps) or (strict and self.refused):
            fail(f"the server refused or left, but should not have: {self.refused}")
        return self.refused

    def settle(self, handle):
        """Everything that is under way is answered, and then flushed."""
        wait(handle, lambda: not self.busy and not self.flushing, "the writes under way")
        self.flush(handle)
        wait(handle, lambda: not self.flushing, "a flush")

    def read(self, handle):
        """All pieces as they are."""
        found, busy, errors = [None] * PIECES, set(), []

        def start(index):
            offset, length = place(index)
            buffer = nbd.Buffer(length)
            busy.add(index)

            def done(error):
                busy.discard(index)
                if error.value:
                    errors.append(f"piece {index} at {offset}: error {error.value}")
                found[index] = buffer.to_bytearray()
                return 1

            handle.aio_pread(buffer, offset, done)

        for index in range(PIECES):
            start(index)
            wait(handle, lambda: len(busy) < IN_FLIGHT, "a read")
        wait(handle, lambda: not busy, "a read")
        if errors:
            fail(f"{len(errors)} pieces cannot be read\n" + "\n".join(errors[:5]))
        return found

    def verify(self, handle, promised, event):
        """Every piece holds the promised version, or one that was sent later; what it holds now is what there is."""
        wrong = []
        for index, found in enumerate(self.read(handle)):
            offset, length = place(index)
            accepted = [version for version in self.sent[index] if version >= promised[index]]
            version = next((version for version in accepted if contents(index, version) == found), None)
            if version is None:
                wrong.append(f"piece {index}: {length} bytes at {offset} hold none of {sorted(accepted)}, "
                             f"but begin with {bytes(found[:8]).hex()}")
                continue
            self.acknowledged[index], self.sent[index] = version, {version}
            self.flushed[index] = min(self.flushed[index], version)
        if wrong:
            fail(f"after {event}: {len(wrong)} pieces wrong\n" + "\n".join(wrong[:5]))

    def measure(self, handle, seconds):
        """MiB/s written, with a flush at the end, and MiB/s read, for so many seconds each."""
        already, begun = self.bytes, time.monotonic()
        self.write(handle, (seconds, None), strict=True)
        written = (self.bytes - already) / (time.monotonic() - begun)
        bytes_read, begun = 0, time.monotonic()
        while time.monotonic() < begun + seconds:
            bytes_read += sum(map(len, self.read(handle)))
        read = bytes_read / (time.monotonic() - begun)
        return written / (1 << 20), read / (1 << 20)


def wait(handle, ready, what):
    deadline = time.monotonic() + PATIENCE
    while not ready():
        handle.poll(1000)
        if time.monotonic() > deadline:
            fail(f"{what} was not answered within {PATIENCE} s")


def warn(text):
    print(text, file=sys.stderr, flush=True)
