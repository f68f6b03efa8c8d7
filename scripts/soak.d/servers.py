"""Real servers over a directory, in rounds; see scripts/soak."""

import json
import os
import signal
import subprocess
import time

from client import fail, warn
from rounds import Soak, main
from server import TRIES, Server

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
DAY = 86400


class Servers(Soak):
    """Servers over a directory: killed, stopped under load, frozen while another takes over, over a store that fails by our own
    options, with clocks that jump."""

    name = "servers"
    events = ["kill", "stop", "bad_store", "takeover", "clock"]

    def prepare(self):
        store = f"file://{self.folder}/store"
        self.servers = [Server(self.program, self.folder, name, store) for name in ("one", "two")]

    def bad_store(self):
        """A store that refuses, times out, loses replies and flips bits; then a kill."""
        self.server.signal(signal.SIGTERM)
        self.stopped()
        faults = {"delay_spread": "30ms", "refuse": 50, "throttle": 20, "fail_after": 50, "time_out": 5,
                  "time_out_after": "1s", "short": 20, "corrupt": 20}
        self.server.start(tries=TRIES, environment={
            f"ASHLAR_STORE__FAULTS__{key.upper()}": str(value) for key, value in faults.items()})
        self.kill()

    def clock(self):
        """The wall clock jumps to the future and back under load, and the next life begins in another year and, as after a
        boot, with another monotonic clock."""
        clock = self.folder / "clock"
        jumps = [self.choose.choice([-30 * 365, -1, -0.04, 0.04, 1, 400, 50 * 365]) * DAY for _ in range(4)]
        set_clock(clock, 0)
        self.server.signal(signal.SIGTERM)
        self.stopped()
        self.prove_faked()
        self.server.start(environment=faked(clock))
        steps = [(self.a_while(), lambda jump=jump: set_clock(clock, jump)) for jump in jumps[:3]]
        self.client.write(self.server.connect(), *steps, (self.a_while(), None), strict=True)
        self.write(self.server.kill)
        self.promised = list(self.client.acknowledged)
        set_clock(clock, jumps[3])
        self.server.wrapper = later_boot(self.choose.randrange(10 * DAY))
        self.server.start(environment=faked(clock))
        self.client.verify(self.server.connect(), self.promised, "clock")
        # Back to the right time, by another life.
        self.server.wrapper = []
        self.kill()

    def prove_faked(self):
        """The program takes for the time what it is told here: else this event would prove nothing."""
        folder = self.folder / "proof"
        folder.mkdir(exist_ok=True)
        set_clock(folder / "clock", 100 * 365 * DAY)
        name, store = f"proof{time.time_ns()}", ["--store", f"file://{folder}/store", "--state", folder / "state"]
        subprocess.run([self.program, "create", name, "--size", "1G", *store], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL, env={**os.environ, **faked(folder / "clock")})
        said = subprocess.run([self.program, "info", name, "--json", *store], cwd=folder, check=True, stdout=subprocess.PIPE)
        if json.loads(said.stdout)["created_unix_millis"] / 1000 < time.time() + 99 * 365 * DAY:
            fail("libfaketime changes nothing for the program (is it linked statically?): leave out the event clock")


def set_clock(clock, seconds):
    """Written whole, since it is read at every look at the clock."""
    fresh = clock.with_suffix(".new")
    fresh.write_text(f"{seconds:+.0f}s\n")
    fresh.rename(clock)


def faked(clock):
    """The wall clock alone: the kernel's monotonic one never jumps in the life of a process."""
    return {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}


def later_boot(seconds):
    """The words before a command that give it other monotonic clocks, where this kernel and user may."""
    words = ["unshare", "--time", f"--monotonic={seconds}", f"--boottime={seconds}"]
    if subprocess.run([*words, "true"], stderr=subprocess.DEVNULL).returncode:
        warn("no time namespace here (root, Linux 5.6): the monotonic clock stays as it is")
        return []
    return words


if __name__ == "__main__":
    main(Servers)
