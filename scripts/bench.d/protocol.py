"""What the protocol's features cost and save: TLS beside plain TCP, and a large volume that holds little beside one that is as
large as what it holds. See scripts/bench; prints a table, and writes nothing."""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time

from nbd_server import Ashlar, NbdkitMemory, fio

MIB, GIB = 1 << 20, 1 << 30
# What is compared: fio's words, and what of its result.
JOBS = {
    "sequential write": (["--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1"], "write", "bw_bytes"),
    "sequential read": (["--rw=read", "--bs=1M", "--iodepth=8"], "read", "bw_bytes"),
    "4 KiB random read QD32": (["--rw=randread", "--bs=4k", "--iodepth=32"], "read", "iops"),
}


def tls(program, work, options):
    """Plain TCP and TLS in turns, on volumes of their own; what is read is in the cache. nbdkit's memory beside it is what the client can."""
    certificates = os.path.join(work, "tls")
    subprocess.run([program, "tls", "init", certificates, "localhost"], cwd=work, check=True, stdout=subprocess.DEVNULL)
    ours = {"plain": Ashlar(program, f"{work}/plain"), "TLS": Ashlar(program, f"{work}/over-tls", certificates)}
    theirs = {"nbdkit plain": NbdkitMemory(f"{work}/nbdkit"), "nbdkit TLS": NbdkitMemory(f"{work}/nbdkit-tls", certificates)}
    sides = ours | theirs
    found = {(side, job): [] for side in sides for job in JOBS}
    for server in ours.values():
        server.ashlar("create", "disk", "--size", "4G")
    for server in sides.values():
        server.start()
    try:
        for _ in range(options.rounds):
            for job, (words, kind, figure) in JOBS.items():
                for side, server in sides.items():
                    found[side, job].append(fio(server, words, options.tls_bytes)[kind][figure])
    finally:
        for server in sides.values():
            server.stop()
    for job, (_, _, figure) in JOBS.items():
        unit, scale = ("MiB/s", MIB) if figure == "bw_bytes" else ("/s", 1)
        for who in ("", "nbdkit "):
            plain, over = (statistics.median(found[who + side, job]) for side in ("plain", "TLS"))
            print(f"| TLS: {who}{job} | {plain / scale:.0f} {unit} plain, {over / scale:.0f} over TLS | {over / plain:.2f} × |")


def copies(program, work, options):
    """nbdcopy of a volume of 1 TiB that holds little, and of one that is full of as much, in turns."""
    server = Ashlar(program, f"{work}/copies")
    sizes = {"sparse": "1T", "full": str(options.held)}
    for name, size in sizes.items():
        server.ashlar("create", name, "--size", size)
    server.start()
    took = {name: [] for name in sizes}
    try:
        for name in sizes:
            fill = f'nbdcopy --flush "$uri" "{server.unix(name)}"'
            subprocess.run(["nbdkit", "-U", "-", "pattern", f"size={options.held}", "--run", fill], check=True)
        for _ in range(options.rounds):
            for name in sizes:
                begun = time.monotonic()
                subprocess.run(["nbdcopy", server.unix(name), "null:"], check=True)
                took[name].append(time.monotonic() - begun)
    finally:
        server.stop()
    sparse, full = (statistics.median(took[name]) for name in ("sparse", "full"))
    held = options.held / GIB
    print(f"| nbdcopy of 1 TiB that hold {held:g} GiB, over that of {held:g} GiB | {sparse:.2f} s, {full:.2f} s | {sparse / full:.2f} × |")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench nbd", description=__doc__)
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s; the medians count")
    parser.add_argument("--tls-bytes", type=int, default=GIB, help="how much each job moves; default: 1 GiB")
    parser.add_argument("--held", type=int, default=10 * GIB, help="bytes in the volumes that are copied; default: 10 GiB")
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="ashlar-bench.")
    try:
        print("| what | measured | ratio |\n| --- | --- | ---: |")
        tls(options.program, work, options)
        copies(options.program, work, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)


main()
