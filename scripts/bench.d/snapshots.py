"""What snapshots, clones and copies cost a volume that is written to: the dip of random writes after a snapshot, their speed with many snapshots kept, how long many clones take, and
what an incremental copy moves. See scripts/bench; prints a table, and writes nothing."""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

import nbd

from nbd_server import Ashlar, fio

MIB = 1 << 20
RANDOM = ["--rw=randwrite", "--bs=4k", "--iodepth=32"]


class Server(Ashlar):
    """One whose answers are wanted."""

    def say(self, *words):
        where = ["--store", f"file://{self.folder}/store", "--state", f"{self.folder}/state"]
        done = subprocess.run([self.program, *words, *where], cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout

    def puts(self, volume):
        return json.loads(self.say("status", volume, "--json"))["volumes"][0]["since_open"]["puts"]


def dip(server, options):
    """Random writes for a while, a snapshot in the middle: the ten seconds after it over the ten before, and the same around no snapshot."""
    found = {"with": [], "without": []}
    for number in range(options.rounds):
        for side in found:
            log = os.path.join(server.folder, "iops")
            taken = threading.Timer(15, lambda: server.say("snapshot", "create", f"disk@dip{number}")) if side == "with" else None
            if taken:
                taken.start()
            fio(server, [*RANDOM, "--time_based", "--runtime=27", f"--write_iops_log={log}", "--log_avg_msec=500"], 512 * MIB)
            if taken:
                taken.join()
            with open(f"{log}_iops.1.log") as lines:
                seen = [(int(line.split(",")[0]) / 1000, int(line.split(",")[1])) for line in lines]
            mean = lambda begin, end: statistics.mean(iops for at, iops in seen if begin < at <= end)
            found[side].append(mean(15, 25) / mean(5, 15))
    for side, ratios in found.items():
        print(f"| random 4 KiB writes QD32, the 10 s after {'a snapshot' if side == 'with' else 'no snapshot'} over those before | {statistics.median(ratios):.3f} × ({min(ratios):.3f} to {max(ratios):.3f}) |")


def many_snapshots(server, options):
    """Two volumes written alike, of which one has many snapshots; then both in turns."""
    begun = time.monotonic()
    write = lambda volume, *words: fio_on(server, volume, *words)
    for volume in ("few", "many"):
        write(volume, "--rw=write", "--bs=1M", "--iodepth=8")
    clients = [client(server, volume) for volume in ("few", "many")]
    for number in range(options.snapshots):
        for place in random.sample(range(256 * MIB >> 12), 64):
            data = os.urandom(4096)
            for one in clients:
                one.pwrite(data, place << 12)
        server.say("snapshot", "create", f"many@{number:04}")
    for one in clients:
        one.shutdown()
    took = time.monotonic() - begun
    found = {"few": [], "many": []}
    for number in range(options.rounds):
        for volume in list(found)[:: 1 if number % 2 else -1]:
            found[volume].append(write(volume, *RANDOM, f"--io_size={512 * MIB}", "--end_fsync=1")["write"]["iops"])
    few, many = (statistics.median(found[volume]) for volume in ("few", "many"))
    ratios = [b / a for a, b in zip(found["few"], found["many"])]
    print(f"| random 4 KiB writes QD32 with {options.snapshots} snapshots kept (made in {took:.0f} s), over none | {many:,.0f}/s, {few:,.0f}/s: {many / few:.3f} × ({min(ratios):.3f} to {max(ratios):.3f}) |")


def client(server, volume):
    one = nbd.NBD()
    one.connect_uri(server.unix(volume))
    return one


def fio_on(server, volume, *words):
    command = ["fio", "--name=job", "--ioengine=nbd", f"--uri={server.unix(volume)}", f"--size={256 * MIB}", "--output-format=json", "--refill_buffers", "--randrepeat=0", *words]
    done = subprocess.run(command, cwd=server.folder, check=True, capture_output=True, text=True)
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]


def many_clones(server, options):
    server.say("snapshot", "create", "disk@shown")
    took = []
    for number in range(options.clones):
        begun = time.monotonic()
        server.say("clone", "disk@shown", f"clone{number:04}")
        took.append(time.monotonic() - begun)
    tenth = max(1, options.clones // 10)
    first, last = (statistics.median(some) for some in (took[:tenth], took[-tenth:]))
    print(f"| {options.clones} clones of one snapshot: the first tenth, the last tenth, each | {first * 1000:.0f} ms, {last * 1000:.0f} ms |")


def copies(server, options):
    other = f"file://{server.folder}/other"
    server.say("snapshot", "create", "disk@one")
    server.say("copy", "disk@one", other)
    ratios = []
    for number in range(options.rounds):
        fio_on(server, "disk", *RANDOM, f"--io_size={32 * MIB}", "--end_fsync=1")
        server.say("snapshot", "create", f"disk@next{number}")
        copied = json.loads(server.say("copy", f"disk@next{number}", other, "--json"))
        ratios.append((copied["put_bytes"] / copied["copied_bytes"], copied["copied_bytes"]))
    ratio, changed = sorted(ratios)[len(ratios) // 2]
    print(f"| incremental copy of {changed / MIB:.0f} MiB, incompressible, in pieces of 4 KiB: put over changed | {ratio:.3f} × |")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench snapshots", description=__doc__)
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s; the medians count")
    parser.add_argument("--snapshots", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--clones", type=int, default=1000, help="default: %(default)s")
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="ashlar-bench.")
    server = Server(options.program, f"{work}/server")
    for volume in ("disk", "few", "many"):
        server.ashlar("create", volume, "--size", "1G")
    server.start()
    try:
        print("| what | measured |\n| --- | ---: |", flush=True)
        for part in (copies, dip, many_snapshots, many_clones):
            part(server, options)
    finally:
        server.stop()
        shutil.rmtree(work, ignore_errors=True)


main()
