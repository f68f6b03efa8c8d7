"""The server of scripts/soak: one process with its own state, over a store that others have too."""

import os
import subprocess
import time

import nbd

from client import PATIENCE, fail

# Small bounds, so that a few seconds bring many segments, checkpoints and collections, and waiting clients.
SMALL = {
    "ASHLAR_VOLUME__DIRTY_BYTES": "2 MiB",
    "ASHLAR_VOLUME__SEGMENT_SIZE": "256 KiB",
    "ASHLAR_VOLUME__CHECKPOINT_INTERVAL": "1 s",
}
# The server may be started over a store that fails; an operator's supervisor would try as often.
TRIES = 20


class Server:
    """`environment` is that of every start; `wrapper` are the words before the command."""

    def __init__(self, program, folder, name, store, environment=None, state=None, volume="soak"):
        self.program, self.store, self.environment, self.volume = program, store, environment or {}, volume
        self.state, self.socket, self.log = state or folder / name, folder / f"{name}.socket", folder / f"{name}.log"
        self.process, self.wrapper = None, []

    def start(self, *flags, environment=None, tries=1):
        for _ in range(tries):
            if self.started(flags, environment or {}):
                return
        fail(f"the server left while starting: {self.tail()}")

    def started(self, flags, environment):
        self.socket.unlink(missing_ok=True)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ASHLAR_")}
        command = [*self.wrapper, self.program, "serve", self.volume, "--store", self.store, "--state", self.state,
                   "--listen", "none", "--socket", self.socket, *flags]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.log.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**clean, **SMALL, **self.environment, **environment})
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

    def running(self):
        return self.process is not None and self.process.poll() is None

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])

    @property
    def uri(self):
        return f"nbd+unix:///{self.volume}?socket={self.socket}"

    def connect(self):
        handle = nbd.NBD()
        handle.connect_uri(self.uri)
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
