"""Real servers whose local disks are full, or fail, in rounds; see scripts/soak."""

import os
import subprocess
import time

from client import PATIENCE, fail, warn
from disk import Disk
from rounds import Soak, main
from server import Server

# What the server says when it cannot write its journal, and when it can again.
LOST = "the journal is suspended"
FOUND = "the journal begins anew"


class Disks(Soak):
    """Servers over a directory, whose journal and state, and whose disk cache, lie on small disks of their own (ext4, loop devices: this
    needs root). full_state, full_cache: a disk is full under load, and has room again, or the server is killed meanwhile; failing_state,
    failing_cache: it gives errors for good, and an empty one takes its place."""

    name = "disks"
    events = ["full_state", "full_cache", "failing_state", "failing_cache"]

    def prepare(self):
        if os.geteuid():
            fail("mounting small disks needs root: run this as root")
        self.disks = []
        self.state, self.cache = (self.disk(name, mib) for name, mib in (("state", 64), ("cache", 48)))
        self.servers = [Server(self.program, self.folder, "one", f"file://{self.folder}/store", self.environment("store"),
                               self.state.folder / "state")]

    def disk(self, name, mib):
        self.disks.append(Disk(self.folder / name, mib))
        return self.disks[-1]

    def environment(self, durability):
        return {
            "ASHLAR_VOLUME__DURABILITY": durability,
            "ASHLAR_JOURNAL__FILE_BYTES": "1 MiB",
            # More than its disk has.
            "ASHLAR_CACHE__DISK__SIZE": "256 MiB", "ASHLAR_CACHE__DISK__DIRECTORY": str(self.cache.folder / "cache"),
            # Next to nothing is in memory, so that reads meet the disk.
            "ASHLAR_CACHE__MEMORY": "64 KiB",
        }

    def another(self, volume):
        server = super().another(volume)
        server.environment = {**server.environment, "ASHLAR_CACHE__DISK__DIRECTORY": str(self.folder / f"{volume}.cache")}
        return server

    def end(self):
        for disk in self.disks:
            disk.remove()

    def another_life(self, meanwhile=lambda: None):
        """A clean stop, and a start that promises by the store or by the journal."""
        self.server.signal(15)
        self.stopped()
        meanwhile()
        self.server.environment = self.environment(self.choose.choice(["store", "journal"]))
        self.server.start()

    def goes_on(self, *steps):
        """The server must serve on through all that; nothing acknowledged is lost."""
        self.client.write(self.server.connect(), (self.a_while(), None), *steps, strict=True)
        self.promised = list(self.client.acknowledged)

    def full_state(self):
        """Until there is room again a write is acknowledged once it is in the store; a kill loses nothing either way."""
        said = self.said(LOST)
        # Full files are used again, so that a journal that has some needs no room: it begins with next to none.
        self.another_life(lambda: self.state.fill(leave=2))
        self.goes_on((1, self.state.fill), (3, None))
        self.must_say(LOST, said)
        self.client.verify(self.server.connect(), self.promised, "full_state")
        if self.choose.randrange(2):
            said = self.said(FOUND)
            self.state.free()
            # It is tried again every ten seconds.
            self.goes_on((12, None))
            self.must_say(FOUND, said)
        self.write(self.server.kill)
        self.promised = list(self.client.acknowledged)
        if self.state.filler.exists() and self.server.started((), {}):
            warn("a start with the disk full came up")
            self.client.verify(self.server.connect(), self.promised, "full_state")
            self.write(self.server.kill)
            self.promised = list(self.client.acknowledged)
        self.state.free()
        self.server.start()

    def full_cache(self):
        """Costs speed."""
        self.another_life()
        self.goes_on((0, self.cache.fill), (5, None))
        self.client.verify(self.server.connect(), self.promised, "full_cache")
        if self.choose.randrange(2):
            self.cache.free()
            self.goes_on((2, None))
        self.write(self.server.kill)
        self.promised = list(self.client.acknowledged)
        self.server.start()
        self.client.verify(self.server.connect(), self.promised, "full_cache")
        self.cache.free()

    def failing_state(self):
        """The server serves on. When it is killed, its disk is lost: what was flushed is in the store, and is taken from there."""
        self.server.signal(15)
        self.stopped()
        self.server.environment = self.environment("store")
        self.server.start()
        said = self.said(LOST)
        self.goes_on((0, self.state.fail), (4, None))
        if not self.state.failed():
            fail("the disk does not fail: this kernel's loop device keeps what has no room; the round proves nothing")
        self.must_say(LOST, said)
        self.client.verify(self.server.connect(), self.promised, "failing_state")
        self.write(self.server.kill)
        self.promised = list(self.client.flushed)
        self.state.replace()
        self.server.start("--takeover")

    def failing_cache(self):
        """Costs speed; what was in it is read from the store."""
        self.another_life()
        self.goes_on((2, None))
        self.goes_on((0, self.cache.fail), (4, None))
        if not self.cache.failed():
            fail("the disk does not fail: this kernel's loop device keeps what has no room; the round proves nothing")
        self.client.verify(self.server.connect(), self.promised, "failing_cache")
        self.write(self.server.kill)
        self.promised = list(self.client.acknowledged)
        self.cache.replace()
        self.server.start()

    def said(self, words):
        return self.server.log.read_text(errors="replace").count(words)

    def must_say(self, words, before):
        deadline = time.monotonic() + PATIENCE
        while self.said(words) == before:
            if time.monotonic() > deadline:
                fail(f"the server did not say that {words}: the round proves nothing; {self.server.tail()}")
            time.sleep(0.1)


if __name__ == "__main__":
    try:
        main(Disks)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: {error}") from error
