"""Rounds of scripts/soak: something is done to a server in the middle of writes, and every piece is compared afterwards.

A kind of soak is a subclass of Soak: it names its events, and has a method for each that leaves in `promised` the version
that every piece must have now.
"""

import argparse
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

import nbd

from client import PATIENCE, SIZE, Client, Failure, fail, warn
from server import Server

MEASURE_SECONDS = 5
# What fio writes, and flushes, before each event, and verifies after it: behind the pieces.
FIO = ["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bssplit=512/20:4k/60:64k/20", "--iodepth=16", "--offset=16m",
       "--size=4m", "--verify=pattern", "--verify_fatal=1", "--output=/dev/null"]
# Of so many measurements the middle one counts.
MEASUREMENTS = 3


class Soak:
    name = "servers"
    events = ["kill", "stop", "takeover"]

    def __init__(self, options, folder):
        self.options, self.folder, self.program = options, folder, options.program
        self.choose = random.Random(options.seed)
        self.client = Client(self.choose)
        self.servers, self.now, self.promised = [], 0, None

    # What a kind of soak has of its own.

    def prepare(self):
        """Sets `servers` and makes what they need."""

    def end(self):
        """Ends what `prepare` began, after success and failure; never fails."""

    def ashlar(self, *words):
        """Runs another command of ashlar on the store."""
        command = [self.program, *words, "--store", self.servers[0].store, "--state", self.folder / "commands"]
        with open(self.folder / "commands.log", "ab") as log:
            if subprocess.run(command, cwd=self.folder, stdout=log, stderr=log, env=self.command_environment()).returncode:
                fail(f"ashlar {' '.join(words)} failed: {(self.folder / 'commands.log').read_text()[-1000:]}")

    def command_environment(self):
        return {}

    def another(self, volume):
        """A server of its own for another volume of the same store, reached in the same way."""
        return Server(self.program, self.folder, volume, self.server.store, self.server.environment, volume=volume)

    # What all have.

    @property
    def server(self):
        return self.servers[self.now]

    def a_while(self):
        return self.choose.uniform(0.2, 2)

    def write(self, then):
        """Writes, does `then`, and sees how the connection ends, for 2 s at most."""
        return self.client.write(self.server.connect(), (self.a_while(), then), (2, None))

    def kill(self):
        """kill -9: the journal has every acknowledged write."""
        self.write(self.server.kill)
        self.promised = list(self.client.acknowledged)
        self.server.start()

    def stop(self):
        """A clean stop while clients write: whatever was acknowledged is there."""
        self.write(lambda: self.server.signal(signal.SIGTERM))
        self.stopped()
        self.promised = list(self.client.acknowledged)
        self.server.start()

    def stopped(self):
        if self.server.wait() != 0:
            fail(f"the server stopped with an error: {self.server.tail()}")

    def takeover(self):
        """Frozen while another server takes over: that one has what was flushed, and the old one can do no more harm."""
        old = self.server
        handle = old.connect()
        self.freeze(handle, old)
        self.promised = list(self.client.flushed)
        self.now = 1 - self.now
        # What an earlier life of this server left in its journal went to the other one at the last takeover.
        self.server.start("--takeover", *(["--drop-journal"] if self.has_journal(self.server) else []))
        self.client.verify(self.server.connect(), self.promised, "takeover")
        self.promised = list(self.client.acknowledged)
        self.thaw(old)
        if self.choose.randrange(2):
            # A write that a displaced server acknowledges as durable would be lost. It may have found out, and refuse the client.
            try:
                old.connect().pwrite(bytes(4096), 0, nbd.CMD_FLAG_FUA)
                fail("a displaced server acknowledged a write with FUA")
            except nbd.Error:
                pass
        time.sleep(1)
        old.kill()

    def freeze(self, handle, old):
        self.client.write(handle, (self.a_while(), lambda: old.signal(signal.SIGSTOP)), (2, None))

    def thaw(self, old):
        old.signal(signal.SIGCONT)

    def has_journal(self, server):
        return any(server.state.glob("*/*.journal"))

    def fio(self, number, *words):
        """Writes or verifies what fio leaves in that round: its own pattern, which names the round and the place."""
        words = [*FIO, f"--uri={self.server.uri}", f"--randseed={number}", f"--verify_pattern=0x{number:08x}%o", *words]
        done = subprocess.run(["fio", *words], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=PATIENCE)
        if done.returncode:
            fail(f"fio {' '.join(words)} failed: {done.stdout[-1000:]}")

    def measure(self, *pairs):
        """Of pairs of client and server in turns: MiB/s written and read. The first measurement of each is thrown away:
        a volume without any data has nothing to collect."""
        rows = [[client.measure(server.connect(), MEASURE_SECONDS) for client, server in pairs]
                for _ in range(1 + MEASUREMENTS)][1:]
        return [tuple(statistics.median(speeds) for speeds in zip(*of_one)) for of_one in zip(*rows)]

    def compare(self):
        """The volume that went through all rounds and a new one beside it."""
        self.ashlar("create", "fresh", "--size", str(SIZE))
        fresh = self.another("fresh")
        self.servers.append(fresh)
        fresh.start()
        after, new = self.measure((self.client, self.server), (Client(self.choose), fresh))
        fresh.signal(signal.SIGTERM)
        if fresh.wait() != 0:
            fail(f"the server of the new volume stopped with an error: {fresh.tail()}")
        return after, new

    def run(self):
        """All rounds; every event comes before any comes again."""
        counts, deck = {}, []
        self.prepare()
        self.ashlar("create", "soak", "--size", str(SIZE))
        self.server.start()
        [before] = self.measure((self.client, self.server))
        for number in range(1, self.options.rounds + 1):
            if not deck:
                deck = self.options.events or list(self.events)
                deck = self.choose.sample(deck, len(deck))
            event, begun = deck.pop(), time.monotonic()
            warn(f"round {number}: {event}")
            self.fio(number, "--do_verify=0", "--end_fsync=1")
            getattr(self, event)()
            self.client.verify(self.server.connect(), self.promised, event)
            self.fio(number, "--verify_only=1")
            counts[event] = counts.get(event, 0) + 1
            warn(f"round {number}: {event} passed in {time.monotonic() - begun:.0f} s, "
                 f"{self.client.requests} writes acknowledged so far")
        after, new = self.compare()
        self.server.signal(signal.SIGTERM)
        self.stopped()
        self.ashlar("check", "soak", "--data")
        return counts, before, after, new


def main(kind, more=lambda parser: None):
    parser = argparse.ArgumentParser(prog=f"scripts/soak {kind.name}", description=kind.__doc__)
    parser.add_argument("--program", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=2 * len(kind.events), help="default: %(default)s, each event twice")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000, help="what is drawn at random; default: the time")
    parser.add_argument("--events", type=lambda text: text.split(","), default=[], metavar="EVENT,…",
                        help=f"only these, of: {', '.join(kind.events)}")
    more(parser)
    options = parser.parse_args()
    for event in options.events:
        if event not in kind.events:
            parser.error(f"there is no event {event}; there are: {', '.join(kind.events)}")
    warn(f"seed {options.seed}")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ashlar-soak-"))
    soak, passed = kind(options, folder), False
    # An end by a signal is an end like any other: nothing of ours stays behind.
    signal.signal(signal.SIGTERM, lambda *_: raise_interrupt())
    try:
        counts, before, after, new = soak.run()
        passed = True
    except (Failure, nbd.Error) as failure:
        warn(f"error: {failure}")
    except KeyboardInterrupt:
        warn("interrupted")
    finally:
        for server in soak.servers:
            if server.running():
                server.kill()
        soak.end()
        if passed:
            shutil.rmtree(folder)
        else:
            warn(f"logs and store are left in {folder}; again: {again(kind, options)}")
    if not passed:
        raise SystemExit(1)
    print(f"{options.rounds} rounds, no error, {soak.client.requests} writes acknowledged: {counts}")
    for what, first, last, fresh in zip(("written", "read"), before, after, new):
        print(f"MiB/s {what}: {first:.2f} before the rounds, {last:.2f} after (ratio {last / first:.2f}), "
              f"{fresh:.2f} a new volume beside it (ratio {last / fresh:.2f})")


def raise_interrupt():
    raise KeyboardInterrupt


def again(kind, options):
    words = ["scripts/soak", kind.name]
    for key, value in vars(options).items():
        if key != "program" and value not in ([], None):
            words += [f"--{key}", ",".join(value) if isinstance(value, list) else str(value)]
    return " ".join(words)
