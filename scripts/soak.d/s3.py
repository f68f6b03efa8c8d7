"""Real servers over a real S3 server, through a proxy that misbehaves, in rounds; see scripts/soak."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from client import PATIENCE, fail, warn
from rounds import Soak, main
from server import TRIES, Server

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
FAULTS = ["error", "error_after", "unavailable", "slow_down", "cut_request", "cut_response", "flip", "late_request",
          "late_response"]


class Proxy:
    """One server's way to the store (proxy.py)."""

    def __init__(self, folder, name, upstream, seed):
        self.port = free_port()
        self.log = open(folder / f"{name}.proxy.log", "ab")
        self.process = subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).with_name("proxy.py"), str(upstream), str(self.port), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.tell()

    def tell(self, **command):
        """What the proxy answers: its counts so far."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            fail(f"the proxy left: {pathlib.Path(self.log.name).read_text()[-1000:]}")
        return json.loads(line)

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


class Radosgw:
    """The S3 server (scripts/s3/radosgw)."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = {"RADOSGW_PORT": str(free_port()), "MON_PORT": str(free_port())}
        self.reach = {}

    def command(self, word):
        with open(self.folder.parent / "radosgw.log", "ab") as log:
            done = subprocess.run([SCRIPTS / "s3" / "radosgw", word, self.folder], stdout=subprocess.PIPE, stderr=log,
                                  text=True, env={**os.environ, **self.ports})
        if done.returncode:
            fail(f"radosgw does not {word}: {(self.folder.parent / 'radosgw.log').read_text()[-1000:]}")
        return done.stdout

    def start(self):
        """Also what was killed, with all that it had."""
        lines = self.command("start").split()
        self.reach = {key.removeprefix("ASHLAR_TEST_S3_"): value for key, value in (line.split("=", 1) for line in lines)}

    def kill(self, process):
        pid = int((self.folder / f"{process}.pid").read_text())
        if str(self.folder).encode() not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            fail(f"{process} is not running before it is killed")
        os.kill(pid, signal.SIGKILL)

    def stop(self):
        self.command("stop")


class S3(Soak):
    """Servers over radosgw on the loopback, each through a proxy of its own that misbehaves on command. `faults`: answers 500, 503 and
    SlowDown, cut and flipped bodies, requests that arrive and answers that come after the client gave up; `refused` and `silent`:
    a store that refuses connections, or never answers; `away`: one that is away for --away seconds under load; `kill_store`: kill
    -9 of the gateway or the OSD, which are started again."""

    name = "s3"
    events = ["kill", "stop", "takeover", "faults", "refused", "silent", "away", "kill_store"]

    def prepare(self):
        self.radosgw = Radosgw(self.folder / "radosgw")
        self.proxies = []
        warn("starting radosgw")
        self.radosgw.start()
        upstream = int(self.radosgw.reach["ENDPOINT"].rsplit(":", 1)[1])
        store = f"s3://{self.radosgw.reach['BUCKET']}/soak"
        for name in ("one", "two"):
            self.proxies.append(Proxy(self.folder, name, upstream, f"{self.options.seed}/{name}"))
            self.servers.append(Server(self.program, self.folder, name, store, self.environment(self.proxies[-1].port)))

    def environment(self, port):
        return {
            "AWS_ACCESS_KEY_ID": self.radosgw.reach["ACCESS"], "AWS_SECRET_ACCESS_KEY": self.radosgw.reach["SECRET"],
            "ASHLAR_STORE__S3__ENDPOINT": f"http://127.0.0.1:{port}", "ASHLAR_STORE__S3__ALLOW_HTTP": "true",
            # Gives up before the proxy's late answers come.
            "ASHLAR_STORE__S3__CONNECT_TIMEOUT": "2s", "ASHLAR_STORE__S3__STALL_TIMEOUT": "2s",
            "ASHLAR_STORE__RETRY__PAUSE_MAX": "1s", "ASHLAR_VOLUME__RETRY_PAUSE_MAX": "1s",
            # A read that needs the store waits for its return, however long that takes on a busy machine: else it fails, as does a
            # write into a part of a block. Patience with the server counts from then on.
            "ASHLAR_STORE__RETRY__READ_LIMIT": "1h",
            # Next to nothing is in memory, so that reads meet the store.
            "ASHLAR_CACHE__MEMORY": "64KiB",
        }

    def command_environment(self):
        return {**os.environ, **self.environment(self.radosgw.reach["ENDPOINT"].rsplit(":", 1)[1])}

    def end(self):
        for proxy in self.proxies:
            proxy.end()
        try:
            self.radosgw.stop()
        except Exception as error:   # whatever it is, it hides nothing that happened before
            warn(f"radosgw did not stop: {error}")

    @property
    def proxy(self):
        return self.proxies[self.now]

    def strict(self, *steps):
        """The server must go on through all that, and then have everything in the store."""
        self.client.write(self.server.connect(), (self.a_while(), None), *steps, (self.a_while(), None), strict=True)
        self.promised = list(self.client.acknowledged)

    def freeze(self, handle, old):
        """Its PUTs are on their way when it is frozen, and arrive after the takeover."""
        proxy = self.proxy
        self.client.write(handle, (self.a_while(), lambda: proxy.tell(mode="hold")), (1, lambda: old.signal(signal.SIGSTOP)), (1, None))
        if not proxy.tell()["held"]:
            fail("no PUT was on its way when the server was frozen: the round proves nothing")

    def thaw(self, old):
        proxy, deadline = self.proxies[self.servers.index(old)], time.monotonic() + PATIENCE
        proxy.tell(mode="pass")
        while proxy.tell()["held"]:
            if time.monotonic() > deadline:
                fail("the late PUTs were not answered")
            time.sleep(0.1)
        # They have changed nothing.
        self.client.verify(self.server.connect(), self.promised, "late PUTs")
        self.promised = list(self.client.acknowledged)
        old.signal(signal.SIGCONT)

    def faults(self):
        """Two thirds of all requests pass; kill -9 and a start amid the faults; until each fault was there."""
        share = self.choose.uniform(0.1, 0.35) / len(FAULTS)
        counts = self.proxy.tell()["counts"]
        # A read that is flipped three times in a row is an error, and may be.
        self.proxy.tell(faults={fault: share / 4 if fault == "flip" else share for fault in FAULTS})
        self.strict((5, None))
        self.write(self.server.kill)
        self.promised = list(self.client.acknowledged)
        self.server.start(tries=TRIES)
        deadline = time.monotonic() + PATIENCE
        while missing := [fault for fault in FAULTS if self.proxy.tell()["counts"].get(fault, 0) == counts.get(fault, 0)]:
            if time.monotonic() > deadline:
                fail(f"the round proves nothing about {missing}")
            self.client.write(self.server.connect(), (2, None), strict=True)
            self.client.read(self.server.connect())
            self.promised = list(self.client.acknowledged)
        self.proxy.tell(faults={})

    def refused(self):
        self.outage("refuse", self.choose.uniform(2, 8))

    def silent(self):
        self.outage("hang", self.choose.uniform(3, 8))

    def away(self):
        self.outage("refuse", self.options.away)

    def outage(self, mode, seconds):
        """The server goes on when the store is there again; or it is killed meanwhile, and the next life waits for the store."""
        proxy = self.proxy
        if self.choose.randrange(2):
            self.strict((0, lambda: proxy.tell(mode=mode)), (seconds, lambda: proxy.tell(mode="pass")))
            return
        self.client.write(self.server.connect(), (self.a_while(), lambda: proxy.tell(mode=mode)), (seconds, self.server.kill), (2, None))
        self.promised = list(self.client.acknowledged)
        proxy.tell(mode="pass")
        self.server.start()

    def kill_store(self):
        process = self.choose.choice(["rgw", "osd"])
        warn(f"kill -9 of the store's {process}")
        self.strict((0, lambda: self.radosgw.kill(process)), (self.choose.uniform(1, 5), self.radosgw.start))


def free_port():
    """Below the range that the kernel gives out by itself."""
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def more(parser):
    parser.add_argument("--away", type=int, default=30, metavar="SECONDS", help="how long the store is away; default: %(default)s")


if __name__ == "__main__":
    main(S3, more)
