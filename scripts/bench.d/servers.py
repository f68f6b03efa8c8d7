"""The servers that are compared: how each is started, reached, made cold, and what it used.

Each is an instance in a folder of its own with a Unix socket there. `start` begins with an empty device, `restart` keeps the
data and forgets what is cached, `drain` returns when everything written is in the store.
"""

import json
import os
import signal
import socket
import subprocess
import time

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A program that runs in the background; its output is in a file."""

    def __init__(self, command, log, env=None, cwd=None):
        self.log = open(log, "ab")
        self.command = command
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                      env={**os.environ, **(env or {})}, cwd=cwd)

    def stop(self, how=signal.SIGTERM, seconds=120):
        if self.child.poll() is None:
            self.child.send_signal(how)
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()

    def cpu_seconds(self):
        fields = open(f"/proc/{self.child.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak_bytes(self):
        for line in open(f"/proc/{self.child.pid}/status"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


def wait_until(what, ready, process=None, seconds=90):
    deadline = time.monotonic() + seconds
    while not ready():
        if process and process.child.poll() is not None:
            raise RuntimeError(f"{what} left; see {process.log.name}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come within {seconds} s")
        time.sleep(0.01)


def answers(path):
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
            return True
        except OSError:
            return False


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """What all have in common."""

    name = ""
    keeps = True   # whether the data outlives a restart
    trims_fast = True

    def __init__(self, bench, folder, size):
        self.bench, self.folder, self.size = bench, folder, size
        os.makedirs(folder, exist_ok=True)
        self.socket = os.path.join(folder, "socket")
        self.log = os.path.join(folder, "log")
        self.processes = []

    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"

    def launch(self, command, **how):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        process = Process(command, self.log, **how)
        self.processes.append(process)
        wait_until(self.name, lambda: answers(self.socket), process)

    def start(self):
        raise NotImplementedError

    def restart(self):
        self.stop()
        self.run()

    def drain(self):
        """Nothing, for a server whose FLUSH keeps its word."""

    def kept(self, written):
        """Figures: `stored`, bytes of its objects, and `logical`, of the data that they hold; `written` from the start of the device, and nothing else,
        have been written, if that is known. None if it has no store."""
        return {}

    def collected(self):
        """Bytes that its own housekeeping has written so far."""
        return 0

    def stop(self):
        while self.processes:
            self.processes.pop().stop()

    def cpu_seconds(self):
        return sum(process.cpu_seconds() for process in self.processes)

    def peak_bytes(self):
        return sum(process.peak_bytes() for process in self.processes)


class Ashlar(Server):
    """ours; `settings` are keys of its configuration"""

    def __init__(self, bench, folder, size, name, url, settings):
        super().__init__(bench, folder, size)
        self.name, self.url, self.settings = name, url, settings

    def environment(self):
        keys = {f"ASHLAR_{key.upper().replace('.', '__')}": str(value) for key, value in self.settings.items()}
        return {**self.bench.s3_environment(), **keys}

    def command(self, *words):
        return [self.bench.ashlar, *words, "--store", self.url, "--state", os.path.join(self.folder, "state")]

    def start(self):
        subprocess.run(self.command("create", "disk", "--size", str(self.size)), check=True, cwd=self.folder,
                       env={**os.environ, **self.environment()}, stdout=subprocess.DEVNULL)
        self.run()

    def run(self):
        self.launch(self.command("serve", "disk", "--listen", "none", "--socket", self.socket),
                    env={**self.environment(), "ASHLAR_LOG__LEVEL": "warn"}, cwd=self.folder)
        # The volume is open; before, the socket takes connections that have to wait.
        wait_until("ashlar", lambda: os.path.exists(os.path.join(self.folder, "state", "control.sock")), self.processes[0])

    def kill(self):
        while self.processes:
            self.processes.pop().stop(signal.SIGKILL)

    def status(self):
        asked = subprocess.run(self.command("status", "--json"), check=True, cwd=self.folder, text=True, stdout=subprocess.PIPE,
                               env={**os.environ, **self.environment()})
        return json.loads(asked.stdout)["volumes"][0]

    def kept(self, written):
        scheme, path = self.url.split("://", 1)
        if scheme == "s3":
            stored = self.bench.bucket_bytes(path.split("/", 1)[1] + "/")
        else:
            files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
            stored = sum(os.path.getsize(file) for file in files)
        return {"stored": stored, "logical": self.status()["mapped_bytes"]}

    def collected(self):
        return self.status()["since_open"]["bytes_moved"]

    def uri(self):
        return f"nbd+unix:///disk?socket={self.socket}"


class NbdkitMemory(Server):
    """no store at all: what the protocol and the client can do"""

    name, keeps = "nbdkit memory", False

    def start(self):
        self.launch(["nbdkit", "-f", "--exit-with-parent", "-U", self.socket, "memory", str(self.size)])


class NbdkitFile(Server):
    """a sparse file on the local disk"""

    name = "nbdkit file"

    def start(self):
        self.path = os.path.join(self.folder, "disk")
        with open(self.path, "wb") as file:
            file.truncate(self.size)
        self.run()

    def run(self):
        self.launch(["nbdkit", "-f", "--exit-with-parent", "-U", self.socket, "file", self.path])


class QemuNbd(NbdkitFile):
    """a sparse file on the local disk, served by QEMU"""

    name = "qemu-nbd"

    def run(self):
        self.launch(["qemu-nbd", "-f", "raw", "-k", self.socket, "-t", "-e", "8", "--discard=unmap", self.path])


class NbdkitS3(Server):
    """nbdkit's S3 plugin: one object for each 64 KiB, the most that this version of it accepts"""

    name = "nbdkit S3"
    trims_fast = False

    def start(self):
        self.key = f"nbdkit-{time.monotonic_ns()}"
        self.run()

    def run(self):
        s3 = self.bench.s3
        self.launch(["nbdkit", "-f", "--exit-with-parent", "-U", self.socket, "S3", f"access-key={s3['ACCESS']}",
                     f"secret-key={s3['SECRET']}", f"endpoint-url=http://127.0.0.1:{self.bench.proxy_port}",
                     f"bucket={s3['BUCKET']}", f"key={self.key}", f"size={self.size}", "object-size=64k"])

    def kept(self, written):
        return {"stored": self.bench.bucket_bytes(self.key), "logical": written} if written else {}


class S3backer(Server):
    """s3backer, 128 KiB blocks, its file served by nbdkit. Its cache tells the kernel at once that data is safe: so
    `drain` unmounts, which writes everything back."""

    name = "s3backer"
    trims_fast = False
    options = ["--blockCacheSize=2000", "--blockCacheThreads=32"]

    def start(self):
        self.prefix = f"s3backer-{time.monotonic_ns()}-"
        self.mount = os.path.join(self.folder, "mount")
        os.makedirs(self.mount, exist_ok=True)
        self.run()

    def run(self):
        s3 = self.bench.s3
        backer = Process(["s3backer", "-f", f"--accessId={s3['ACCESS']}", f"--accessKey={s3['SECRET']}", "--vhost",
                          f"--baseURL=http://localhost:{self.bench.proxy_port}/", "--region=us-east-1",
                          "--blockSize=128k", f"--size={self.size}", "--force", f"--prefix={self.prefix}",
                          *self.options, s3["BUCKET"], self.mount], self.log)
        self.processes.append(backer)
        file = os.path.join(self.mount, "file")
        wait_until(self.name, lambda: os.path.exists(file), backer)
        self.launch(["nbdkit", "-f", "--exit-with-parent", "-U", self.socket, "file", file])

    def stop(self):
        if not self.processes:
            return
        self.processes.pop().stop()
        subprocess.run(["umount", self.mount], check=True)
        backer = self.processes.pop()
        backer.child.wait(300)
        backer.log.close()

    def drain(self):
        self.restart()

    def kept(self, written):
        return {"stored": self.bench.bucket_bytes(self.prefix), "logical": written} if written else {}


class S3backerSync(S3backer):
    """the same, with writes that are in the store when they are acknowledged: for FLUSH"""

    name = "s3backer (sync)"
    options = [*S3backer.options, "--blockCacheSync", "--blockCacheWriteDelay=0"]
