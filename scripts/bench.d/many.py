"""What many servers get out of one store: each on a host of its own, which is a network namespace, each with a volume of its own, and all of them with one and the same snapshot, read-only.
Beside it what the store gives a program that only PUTs and GETs, as many at once. See scripts/bench; prints a table, and writes nothing."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import time

import hosts
import servers
from servers import Process

MIB, GIB = 1 << 20, 1 << 30
PLACES = {"directory": "a directory", "s3": "S3 (radosgw)"}
# What is shown of each number of servers: the work, what it is compared with.
WORK = {"write": "PUT", "read": "GET", "snapshot": "GET"}


def busy_ticks():
    """Of all processors, since the machine came up."""
    ticks = [int(field) for field in open("/proc/stat").readline().split()[1:]]
    return sum(ticks) - ticks[3] - ticks[4]


class Host:
    """A host with a server, and who reads and writes there."""

    def __init__(self, bench, number, enter):
        self.bench, self.enter, self.volume = bench, enter, f"disk{number}"
        self.folder = os.path.join(bench.work, f"host{number}")
        self.socket = os.path.join(self.folder, "socket")
        os.makedirs(self.folder)

    def command(self, url, *words):
        return [*self.enter, self.bench.program, *words, "--store", url, "--state", f"{self.folder}/state"]

    def ashlar(self, url, *words):
        subprocess.run(self.command(url, *words), check=True, cwd=self.folder, env=self.bench.environment(), stdout=subprocess.DEVNULL)

    def start(self, url, *exports):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        command = self.command(url, "serve", *exports, "--listen", "none", "--socket", self.socket)
        self.process = Process(command, f"{self.folder}/log", env=self.bench.environment(), cwd=self.folder)

    def started(self):
        """All is open; before, the socket takes connections that have to wait."""
        ready = lambda: servers.answers(self.socket) and os.path.exists(f"{self.folder}/state/control.sock")
        servers.wait_until("ashlar", ready, self.process)

    def forget(self):
        """Another host would know as little of what was served here."""
        shutil.rmtree(f"{self.folder}/state", ignore_errors=True)

    def begin(self, command):
        return subprocess.Popen([*self.enter, *command], cwd=self.folder, env=self.bench.environment(), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)

    def fio(self, export, size, *words):
        return self.begin(["fio", "--name=job", "--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={self.socket}", f"--size={size}",
                           "--bs=1M", "--iodepth=8", "--randrepeat=0", "--refill_buffers", "--output-format=json", *words])


class Bench:
    """A store, and hosts around it."""

    def __init__(self, options, work):
        self.options, self.work, self.program = options, work, options.program
        self.s3 = None
        enters = hosts.make(max(options.servers))
        self.hosts = [Host(self, number, enter) for number, enter in enumerate(enters, 1)]

    def environment(self):
        ours = {"ASHLAR_LOG__LEVEL": "error"}
        if self.s3:
            ours |= {"AWS_ACCESS_KEY_ID": self.s3["ACCESS"], "AWS_SECRET_ACCESS_KEY": self.s3["SECRET"],
                     "ASHLAR_STORE__S3__ALLOW_HTTP": "true", "ASHLAR_STORE__S3__ENDPOINT": self.s3["ENDPOINT"]}
        return {**os.environ, **ours}

    # ---- the store

    def radosgw(self, what):
        script = os.path.join(self.options.repository, "scripts/s3/radosgw")
        return subprocess.run([script, what, os.path.join(self.work, "s3")], env={**os.environ, "RADOSGW_ADDRESS": hosts.STORE}, text=True,
                              stdout=subprocess.PIPE, check=what == "start").stdout

    def open_store(self, place):
        if place == "directory":
            return f"file://{self.work}/store"
        pairs = (line.split("=", 1) for line in self.radosgw("start").splitlines())
        self.s3 = {key.removeprefix("ASHLAR_TEST_S3_"): value for key, value in pairs}
        return f"s3://{self.s3['BUCKET']}/many"

    def close_store(self, place):
        if place == "s3":
            self.radosgw("stop")
            self.s3 = None
        else:
            shutil.rmtree(f"{self.work}/store", ignore_errors=True)

    # ---- the work

    def together(self, begun):
        """Waits for what was begun on all hosts; returns what each said, how long all took, and how busy the machine was."""
        begin, ticks = time.monotonic(), busy_ticks()
        said = []
        for child in [begin_one() for begin_one in begun]:
            out, err = child.communicate()
            if child.returncode != 0:
                raise RuntimeError(f"{' '.join(child.args)} failed: {err.strip()[-500:]}")
            said.append(out)
        took = time.monotonic() - begin
        return said, took, (busy_ticks() - ticks) / servers.TICKS / took / os.cpu_count()

    def plain(self, count, url):
        """PUTs of 8 MiB, 8 at once for each server, and then GETs of these: by one program, so that all of them are under way together."""
        command = [self.program, "bench", url, "--json", "--sizes", "8MiB", "--parallel", str(8 * count), "--requests", "1000000",
                   "--bytes", "1TiB", "--time", f"{self.options.seconds}s"]
        said, _, _ = self.together([lambda: self.hosts[0].begin(command)])
        cells = {cell["operation"]: cell["requests"] * cell["size"] / cell["seconds"] for cell in json.loads(said[0])["cells"]}
        return {"PUT": cells["put"], "GET": cells["get"]}

    def serve(self, some, url):
        for host in some:
            host.forget()
            host.start(url, host.volume, "shared@one")
        for host in some:
            host.started()

    def stop(self, some):
        for host in some:
            host.process.stop()

    def phase(self, some, export, size, *words):
        cpu = sum(host.process.cpu_seconds() for host in some)
        _, took, busy = self.together([lambda host=host: host.fio(export or host.volume, size, *words) for host in some])
        cpu, moved = sum(host.process.cpu_seconds() for host in some) - cpu, size * len(some)
        return {"rate": moved / took, "busy": busy, "cpu": cpu / (moved / GIB)}

    def turn(self, count, url):
        some = self.hosts[:count]
        plain = self.plain(count, url)
        share = self.options.bytes // count
        for host in some:
            host.ashlar(url, "create", host.volume, "--size", str(share))
        found = {}
        for work, export, size, words in [("write", None, share, ["--rw=write", "--end_fsync=1"]), ("read", None, share, ["--rw=read"]),
                                          ("snapshot", "shared@one", self.options.shared, ["--rw=read"])]:
            self.serve(some, url)
            found[work] = self.phase(some, export, size, *words)
            self.stop(some)
        for host in some:
            host.ashlar(url, "delete", host.volume, "--yes")
            host.forget()
        return plain, found

    def share(self, url):
        """The snapshot that all are to read."""
        host = self.hosts[0]
        host.ashlar(url, "create", "shared", "--size", str(self.options.shared))
        host.start(url, "shared")
        host.started()
        self.together([lambda: host.fio("shared", self.options.shared, "--rw=write", "--end_fsync=1")])
        host.ashlar(url, "snapshot", "create", "shared@one")
        self.stop([host])

    def place(self, place):
        url = self.open_store(place)
        try:
            self.share(url)
            seen = {count: [] for count in self.options.servers}
            for number in range(self.options.rounds):
                for count in self.options.servers[:: -1 if number % 2 else 1]:
                    seen[count].append(self.turn(count, url))
            for count in self.options.servers:
                print(line(place, count, seen[count]), flush=True)
        finally:
            self.close_store(place)


def line(place, count, turns):
    """The medians of some turns."""
    middle = statistics.median
    cells = [PLACES[place], str(count)]
    for work, beside in WORK.items():
        found = [turn[1][work] for turn in turns]
        ratios = sorted(turn[1][work]["rate"] / turn[0][beside] for turn in turns)
        if work != "snapshot":
            cells.append(f"{middle(turn[0][beside] for turn in turns) / MIB:,.0f} MiB/s")
        cells.append(f"{middle(one['rate'] for one in found) / MIB:,.0f} MiB/s")
        cells.append(f"{middle(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    for figure, form in (("cpu", "{:.1f}"), ("busy", "{:.0%}")):
        cells.append(", ".join(form.format(middle(turn[1][work][figure] for turn in turns)) for work in WORK))
    return f"| {' | '.join(cells)} |"


def about(options):
    commit = subprocess.run(["git", "-C", options.repository, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (f"{options.rounds} rounds, medians; {os.cpu_count()} processors for servers, clients and store; load {os.getloadavg()[0]:.1f} when it began; kernel "
            f"{platform.release()}; ashlar at {commit or '?'}")


def main():
    counts = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(prog="scripts/bench --servers", description=__doc__)
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--repository", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--work", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--places", type=lambda text: text.split(","), default=list(PLACES), help=", ".join(PLACES))
    parser.add_argument("--counts", dest="servers", type=counts, default=[1, 2, 4, 8], help="numbers of servers; default: 1,2,4,8; at most 200")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s; the medians count")
    parser.add_argument("--bytes", type=int, default=2 * GIB, help="what the volumes hold together; default: 2 GiB")
    parser.add_argument("--shared", type=int, default=512 * MIB, help="what the snapshot holds; default: 512 MiB")
    parser.add_argument("--seconds", type=int, default=4, help="of plain PUTs, and of plain GETs; default: %(default)s")
    options = parser.parse_args()
    for place in options.places:
        if place not in PLACES:
            parser.error(f"there is no place {place}; there are {', '.join(PLACES)}")
    if not all(1 <= count <= 200 for count in options.servers):
        parser.error("there can be 1 to 200 servers")
    print(about(options) + "\n")
    print("| store | servers | plain PUTs | own volumes, written | / PUTs | plain GETs | own volumes, read cold | / GETs | one snapshot, read cold by all | / GETs "
          "| servers' processor seconds per GiB: write, read, snapshot | the machine's processors busy |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    bench = Bench(options, options.work)
    try:
        for place in options.places:
            bench.place(place)
    finally:
        for host in bench.hosts:
            if hasattr(host, "process"):
                host.process.stop(seconds=20)


main()
