"""Real servers, real processes, in rounds; see scripts/soak.

A client writes pieces of odd sizes at odd places, several at once and one at a time in each, and knows of each piece which
versions were sent, acknowledged and flushed. A round does something to the server in the middle of that; afterwards every
piece must hold what was promised for such an event, or something that was sent later.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import nbd

PIECES = 800
STEP = 5003
SIZE = 64 << 20
# A server that is asked to start, to stop, or to answer does so within this time.
PATIENCE = 120


def place(index):
    return index * STEP, 1 + index * 7919 % STEP


def contents(index, version):
    length = place(index)[1]
    if not version:
        return bytes(length)
    word = struct.pack("<II", index, version)
    return (word * (length // len(word) + 1))[:length]


class Server:
    """One server: its own state, the common store."""

    def __init__(self, program, folder, name):
        self.program, self.store = program, folder / "store"
        self.state, self.socket, self.log = folder / name, folder / f"{name}.socket", folder / f"{name}.log"
        self.process = None

    def start(self, *flags, faults=None):
        """Starts it; over a store that fails it may take several tries, as an operator's supervisor would make them."""
        for _ in range(20 if faults else 1):
            if self.started(flags, faults):
                return
        fail(f"the server left while starting: {self.tail()}")

    def started(self, flags, faults):
        self.socket.unlink(missing_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ASHLAR_")}
        environment.update({f"ASHLAR_STORE__FAULTS__{key.upper()}": str(value) for key, value in (faults or {}).items()})
        environment["ASHLAR_VOLUME__DIRTY_BYTES"] = "2 MiB"
        environment["ASHLAR_VOLUME__SEGMENT_SIZE"] = "256 KiB"
        environment["ASHLAR_VOLUME__CHECKPOINT_INTERVAL"] = "1 s"
        command = [self.program, "serve", "soak", "--store", f"file://{self.store}", "--state", self.state,
                   "--listen", "none", "--socket", self.socket, *flags]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.log.parent, env=environment, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                fail(f"the server did not answer within {PATIENCE} s of its start: {self.tail()}")
            time.sleep(0.05)
        return True

    def answers(self):
        try:
            self.connect().shutdown()
        except nbd.Error:
            return False
        return True

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])

    def connect(self):
        handle = nbd.NBD()
        handle.connect_uri(f"nbd+unix:///soak?socket={self.socket}")
        return handle

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def wait(self):
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            fail(f"the server did not stop within {PATIENCE} s: {self.tail()}")


class Client:
    """What was sent, acknowledged and flushed, piece by piece; versions only grow."""

    def __init__(self, choose):
        self.choose = choose
        self.acknowledged, self.flushed = [0] * PIECES, [0] * PIECES
        self.sent = [{0} for _ in range(PIECES)]
        self.version, self.requests = 0, 0

    def write(self, handle, seconds, then):
        """Writes for so long, does `then`, and goes on until the connection ends or refuses, or 2 s have passed."""
        busy, refused, flushing = set(), [], []
        until, end = time.monotonic() + seconds, None

        def start(index):
            self.version += 1
            version = self.version
            self.sent[index].add(version)
            busy.add(index)

            def done(error):
                busy.discard(index)
                if error.value:
                    refused.append(error.value)
                else:
                    self.acknowledged[index] = version
                    self.requests += 1
                return 1

            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(contents(index, version))), place(index)[0], done)

        def flush():
            before = list(self.acknowledged)
            flushing.append(1)

            def done(error):
                flushing.clear()
                if not error.value:
                    self.flushed = before
                return 1

            handle.aio_flush(done)

        try:
            while not refused and (end is None or time.monotonic() < end):
                while len(busy) < 16:
                    index = self.choose.randrange(PIECES)
                    if index not in busy:
                        start(index)
                if not flushing and self.choose.randrange(20) == 0:
                    flush()
                handle.poll(200)
                if end is None and time.monotonic() > until:
                    then()
                    end = time.monotonic() + 2
        except nbd.Error:
            pass
        if end is None:
            fail(f"the server refused or left before anything was done to it: {refused}")
        return refused

    def verify(self, handle, promised, event):
        """Every piece holds the promised version, or one that was sent later; what it holds now is what there is."""
        wrong = []
        for index in range(PIECES):
            offset, length = place(index)
            found = handle.pread(length, offset)
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


class Soak:
    def __init__(self, program, folder, seed):
        self.choose = random.Random(seed)
        self.servers = [Server(program, folder, "one"), Server(program, folder, "two")]
        self.now = 0
        self.client = Client(self.choose)

    @property
    def server(self):
        return self.servers[self.now]

    def run(self, event):
        getattr(self, event)()
        self.client.verify(self.server.connect(), self.promised, event)

    def write(self, then):
        return self.client.write(self.server.connect(), self.choose.uniform(0.2, 2), then)

    def kill(self):
        """kill -9: the journal has every acknowledged write."""
        self.write(self.server.kill)
        self.promised = list(self.client.acknowledged)
        self.server.start()

    def stop(self):
        """A clean stop while clients write: whatever was acknowledged is there."""
        self.write(lambda: self.server.signal(signal.SIGTERM))
        if self.server.wait() != 0:
            fail(f"the server stopped with an error: {self.server.tail()}")
        self.promised = list(self.client.acknowledged)
        self.server.start()

    def bad_store(self):
        """A store that refuses, times out, loses replies and flips bits; then a kill."""
        self.server.signal(signal.SIGTERM)
        self.server.wait()
        self.server.start(faults={
            "delay_spread": "30ms", "refuse": 50, "throttle": 20, "fail_after": 50, "time_out": 5,
            "time_out_after": "1s", "short": 20, "corrupt": 20})
        self.kill()

    def takeover(self):
        """Frozen while another server takes over: that one has what was flushed, and the old one can do no more harm."""
        old = self.server
        handle = old.connect()
        self.client.write(handle, self.choose.uniform(0.2, 2), lambda: old.signal(signal.SIGSTOP))
        self.promised = list(self.client.flushed)
        self.now = 1 - self.now
        # What an earlier life of this server left in its journal went to the other one at the last takeover.
        self.server.start("--takeover", "--drop-journal")
        self.client.verify(self.server.connect(), self.promised, "takeover")
        self.promised = list(self.client.acknowledged)
        old.signal(signal.SIGCONT)
        late = old.connect() if self.choose.randrange(2) else None
        if late is not None:
            # A write that a displaced server acknowledges as durable would be lost.
            try:
                late.pwrite(bytes(4096), 0, nbd.CMD_FLAG_FUA)
                fail("a displaced server acknowledged a write with FUA")
            except nbd.Error:
                pass
        time.sleep(1)
        old.kill()


def fail(text):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak servers")
    parser.add_argument("--program", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000)
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ashlar-soak-"))
    created = [options.program, "create", "soak", "--size", str(SIZE), "--store", f"file://{folder}/store"]
    subprocess.run(created, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    soak = Soak(options.program, folder, options.seed)
    counts, passed = {}, False
    try:
        soak.server.start()
        for _ in range(options.rounds):
            event = soak.choose.choice(["kill", "stop", "bad_store", "takeover"])
            soak.run(event)
            counts[event] = counts.get(event, 0) + 1
            print(f"{event}: {soak.client.requests} writes acknowledged so far", file=sys.stderr)
        soak.server.signal(signal.SIGTERM)
        soak.server.wait()
        check = [options.program, "check", "soak", "--store", f"file://{folder}/store"]
        subprocess.run(check, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        passed = True
    finally:
        for server in soak.servers:
            if server.process and server.process.poll() is None:
                server.process.kill()
        if passed:
            shutil.rmtree(folder)
        else:
            print(f"logs and store are left in {folder}; again: scripts/soak servers --seed {options.seed}", file=sys.stderr)
    print(f"{options.rounds} rounds, no error, {soak.client.requests} writes acknowledged: {counts}")


if __name__ == "__main__":
    main()
