"""A server of some volumes in a directory, for whoever measures what is between it and a client."""

import json
import os
import subprocess

import servers
from servers import Process


class OverTcp:
    """A server on a port of the loopback, over TLS if there are certificates."""

    def __init__(self, folder, tls):
        self.folder, self.tls = folder, tls
        self.port = servers.free_port()
        os.makedirs(folder)

    def stop(self):
        self.process.stop()

    def uri(self, volume):
        if self.tls:
            # fio lets no URI name files with certificates.
            return f"nbds://localhost:{self.port}/{volume}?tls-verify-peer=false"
        return f"nbd://localhost:{self.port}/{volume}"


class NbdkitMemory(OverTcp):
    """nbdkit with a disk in memory, which does as little as a server can."""

    def __init__(self, folder, tls=None):
        super().__init__(folder, tls)

    def start(self):
        tls = ["--tls=require", f"--tls-certificates={self.tls}"] if self.tls else []
        command = ["nbdkit", "--foreground", "--ipaddr", "127.0.0.1", "--port", str(self.port), *tls, "memory", "4G"]
        self.process = Process(command, os.path.join(self.folder, "log"), cwd=self.folder)
        servers.wait_until("nbdkit", lambda: servers.listens(self.port), self.process)


class Ashlar(OverTcp):
    """A server of some volumes in a directory, on a Unix socket, too."""

    def __init__(self, program, folder, tls=None):
        super().__init__(folder, tls)
        self.program = program
        with open(os.path.join(folder, "ashlar.toml"), "w") as settings:
            if tls:
                settings.write(f'[nbd.tls]\nmode = "required"\ncertificate = "{tls}/server-cert.pem"\nkey = "{tls}/server-key.pem"\n')

    def ashlar(self, *words):
        where = ["--store", f"file://{self.folder}/store", "--state", f"{self.folder}/state"]
        subprocess.run([self.program, *words, *where], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def start(self):
        command = [self.program, "serve", "--store", f"file://{self.folder}/store", "--state", f"{self.folder}/state",
                   "--listen", f"127.0.0.1:{self.port}", "--socket", f"{self.folder}/socket"]
        self.process = Process(command, os.path.join(self.folder, "log"), cwd=self.folder)
        servers.wait_until("ashlar", lambda: servers.answers(f"{self.folder}/socket"), self.process)

    def unix(self, volume):
        return f"nbd+unix:///{volume}?socket={self.folder}/socket"


def fio(server, words, size):
    command = ["fio", "--name=job", "--ioengine=nbd", f"--uri={server.uri('disk')}", f"--size={size}", "--output-format=json",
               "--refill_buffers", "--randrepeat=0", *words]
    done = subprocess.run(command, cwd=server.folder, check=True, capture_output=True, text=True)
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
