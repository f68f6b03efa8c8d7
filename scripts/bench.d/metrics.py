"""What metrics cost at full load: one server that has them and is asked for them every second, and the page beside it, in turns with one that has none.
Processor time is the server's own. See scripts/bench; prints a table, and writes nothing."""

import argparse
import shutil
import statistics
import tempfile
import threading
import urllib.request

import servers
from nbd_server import Ashlar, fio

MIB = 1 << 20
JOBS = {
    "4 KiB random write QD32": (["--rw=randwrite", "--bs=4k", "--iodepth=32", "--end_fsync=1"], "write"),
    "4 KiB random read QD32, warm": (["--rw=randread", "--bs=4k", "--iodepth=32"], "read"),
}


class Watched:
    """Somebody who asks for the metrics every second, as long as it lasts. Prometheus asks every 15 or 60."""

    def __init__(self, port):
        self.over, self.asked = threading.Event(), 0
        self.urls = [f"http://127.0.0.1:{port}/metrics", f"http://127.0.0.1:{port}/status.json"]
        self.thread = threading.Thread(target=self.ask)

    def ask(self):
        while not self.over.wait(1):
            for url in self.urls:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    answer.read()
            self.asked += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench metrics", description=__doc__)
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s; the medians count")
    parser.add_argument("--bytes", type=int, default=768 * MIB, help="how much each job moves; default: 768 MiB")
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="ashlar-bench.")
    port = servers.free_port()
    sides = {"without": Ashlar(options.program, f"{work}/without"), "with": Ashlar(options.program, f"{work}/with")}
    with open(f"{work}/with/ashlar.toml", "a") as settings:
        settings.write(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    spent, speed = ({(side, job): [] for side in sides for job in JOBS} for _ in range(2))
    for server in sides.values():
        server.ashlar("create", "disk", "--size", str(options.bytes // 4))
        server.start()
    try:
        for number in range(options.rounds + 1):
            for job, (words, kind) in JOBS.items():
                for side in list(sides)[:: 1 if number % 2 else -1]:
                    server = sides[side]
                    before = server.process.cpu_seconds()
                    done = measure(server, words, options.bytes, port if side == "with" else None)[kind]
                    # The first round fills the volumes.
                    if number > 0:
                        spent[side, job].append(server.process.cpu_seconds() - before)
                        speed[side, job].append(done["iops"])
    finally:
        for server in sides.values():
            server.stop()
        shutil.rmtree(work, ignore_errors=True)
    print("| what | without | with metrics | ratio |\n| --- | ---: | ---: | ---: |")
    for job in JOBS:
        for what, found, unit in [("processor time of the server", spent, "s"), ("speed", speed, "/s")]:
            without, with_them = (statistics.median(found[side, job]) for side in ("without", "with"))
            ratios = sorted(b / a for a, b in zip(found["without", job], found["with", job]))
            print(f"| {job}: {what} | {without:,.2f} {unit} | {with_them:,.2f} {unit} | {with_them / without:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |")


def measure(server, words, size, port):
    words = [*words, f"--io_size={size}"]
    if port is None:
        return fio(server, words, size // 4)
    with Watched(port):
        return fio(server, words, size // 4)


main()
