"""The run: places, rounds, turns. See scripts/bench, which installs what is needed and calls this."""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import report
import servers
from jobs import GIB, MIB, Jobs, fio
from servers import Process

# `sustained`: the random writes that are compared with s3backer's, by goal for a minute.
SIZES = {
    "quick": SimpleNamespace(seconds=5, sustained=60, slow=12, sequential=512 * MIB, near=128 * MIB, region=GIB, burst=160 * MIB,
                             opened=[GIB, 10 * GIB]),
    "full": SimpleNamespace(seconds=60, sustained=60, slow=120, sequential=2 * GIB, near=192 * MIB, region=4 * GIB, burst=160 * MIB,
                            opened=[GIB, 10 * GIB, 100 * GIB]),
}
COUNTS = ("put", "get", "head", "list", "delete", "bytes_up", "bytes_down")
NOTHING = dict.fromkeys(COUNTS, 0)
# What the rows of a job are called, where that is not its name.
JOB_ROWS = {"reopen": "open after"}
JOBS = ["seqwrite", "seqread", "randread", "mixed", "burst", "randwrite", "flush"]
WHOLE = ["mkfs", "trim", "reopen"]


class Bench:
    """What all turns share."""

    def __init__(self, arguments, work):
        self.arguments, self.work = arguments, work
        target = os.environ.get("CARGO_TARGET_DIR", os.path.join(arguments.repository, "target"))
        self.ashlar = os.path.join(target, "release/ashlar")
        self.proxy_program = os.path.join(target, "release/examples/latency-proxy")
        self.sizes = SIZES["quick" if arguments.quick else "full"]
        self.sizes.opened = arguments.opened or self.sizes.opened
        self.s3, self.proxy, self.proxy_port, self.counter_port = None, None, None, None
        self.results = []
        if arguments.add:
            with open(os.path.join(arguments.output, "benchmarks.json")) as file:
                measured = [(place, job) for place in arguments.places for job in arguments.jobs]
                kept = lambda row: not any(row["place"] == place and row["job"].startswith(JOB_ROWS.get(job, job)) for place, job in measured)
                self.results = [row for row in json.load(file)["results"] if kept(row)]

    # ---- the store and the way to it

    def start_s3(self):
        script = os.path.join(self.arguments.repository, "scripts/s3/radosgw")
        ports = {"RADOSGW_PORT": str(servers.free_port()), "MON_PORT": str(servers.free_port())}
        done = subprocess.run([script, "start", os.path.join(self.work, "s3")], env={**os.environ, **ports}, text=True,
                              stdout=subprocess.PIPE, check=True)
        pairs = (line.split("=", 1) for line in done.stdout.splitlines())
        self.s3 = {key.removeprefix("ASHLAR_TEST_S3_"): value for key, value in pairs}

    def stop_s3(self):
        script = os.path.join(self.arguments.repository, "scripts/s3/radosgw")
        subprocess.run([script, "stop", os.path.join(self.work, "s3")], check=False)

    def start_proxy(self, round_trip):
        self.proxy_port, self.counter_port = servers.free_port(), servers.free_port()
        self.proxy = Process([self.proxy_program, "--listen", f"127.0.0.1:{self.proxy_port}", "--counters",
                              f"127.0.0.1:{self.counter_port}", "--to", self.s3["ENDPOINT"].removeprefix("http://"),
                              "--round-trip", round_trip], os.path.join(self.work, "proxy-log"))
        servers.wait_until("the proxy", lambda: self.ask_proxy() is not None, self.proxy)

    def stop_proxy(self):
        if self.proxy:
            self.proxy.stop()
        self.proxy = None

    def ask_proxy(self):
        try:
            with socket.create_connection(("127.0.0.1", self.counter_port), 5) as asking:
                return json.loads(asking.makefile().readline())
        except OSError:
            return None

    def counts(self):
        if not self.proxy:
            return NOTHING
        told = self.ask_proxy()
        if told["not_understood"]:
            raise RuntimeError("the proxy did not understand a connection, so its counts are wrong")
        return {key: told[key] for key in COUNTS}

    def bucket_bytes(self, prefix):
        """What lies in the bucket: asked behind the proxy's back, so that it counts for nobody."""
        import boto3
        client = boto3.client("s3", endpoint_url=self.s3["ENDPOINT"], aws_access_key_id=self.s3["ACCESS"],
                              aws_secret_access_key=self.s3["SECRET"], region_name="us-east-1")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.s3["BUCKET"], Prefix=prefix)
        return sum(entry["Size"] for page in pages for entry in page.get("Contents", []))

    def s3_environment(self):
        if not self.s3:
            return {}
        return {"AWS_ACCESS_KEY_ID": self.s3["ACCESS"], "AWS_SECRET_ACCESS_KEY": self.s3["SECRET"],
                "ASHLAR_STORE__S3__ALLOW_HTTP": "true",
                "ASHLAR_STORE__S3__ENDPOINT": f"http://127.0.0.1:{self.proxy_port}"}

    # ---- who takes part

    def contenders(self, place):
        def ashlar(name, **settings):
            def make(folder, size):
                url = f"file://{folder}/store" if place == "local" else f"s3://{self.s3['BUCKET']}/{time.monotonic_ns()}"
                return servers.Ashlar(self, folder, size, name, url, settings)
            return name, make

        def peer(kind):
            return kind.name, lambda folder, size: kind(self, folder, size)

        both = [ashlar("ashlar"), ashlar("ashlar (journal)", **{"volume.durability": "journal"})]
        if place == "local":
            both.append(ashlar("ashlar (encrypted)", **{"keys.passphrase": "correct horse battery staple"}))
            return [*both, *map(peer, [servers.NbdkitMemory, servers.NbdkitFile, servers.QemuNbd])]
        return [*both, *map(peer, [servers.S3backer, servers.S3backerSync, servers.NbdkitS3])]

    def wanted(self, name, job):
        """The variants that differ only in what a FLUSH promises take part only where that is measured."""
        if name == "ashlar (journal)":
            return job == "flush"
        if name == "ashlar (encrypted)":
            return job in ("seqwrite", "seqread")
        if name == "s3backer (sync)":
            return job == "flush"
        if name == "s3backer" and job == "flush":
            return False   # its FLUSH does nothing
        return True

    # ---- the run

    def note(self, place, who, round_no):
        def take(job, figures):
            self.results.append({"place": place, "who": who, "round": round_no, "job": job, **figures})
            self.save()
            shown = {key: round(value, 5) for key, value in figures.items() if value}
            print(f"{place} {round_no} {who}: {job} {shown}", flush=True)
        return take

    def save(self):
        with open(os.path.join(self.arguments.output, "benchmarks.json"), "w") as file:
            json.dump({"about": self.about(), "results": self.results}, file, indent=0)

    def turn(self, place, round_no, who, make, jobs, size):
        folder = tempfile.mkdtemp(dir=self.work)
        try:
            Jobs(make(folder, size), self.sizes, self.note(place, who, round_no)).run(jobs)
        except (RuntimeError, subprocess.SubprocessError, OSError) as error:
            print(f"{place} {round_no} {who}: FAILED: {error}", file=sys.stderr, flush=True)
            self.results.append({"place": place, "who": who, "round": round_no, "job": "failed", "why": str(error)[:300]})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def place(self, place):
        if place != "local":
            if not self.s3:
                self.start_s3()
            self.start_proxy(place.removeprefix("s3-"))
        try:
            for round_no in range(1, self.arguments.rounds + 1):
                self.baselines(place, round_no)
                for who, make in self.contenders(place):
                    if self.arguments.peers and who not in self.arguments.peers:
                        continue
                    jobs = [job for job in JOBS if job in self.arguments.jobs and self.wanted(who, job)]
                    if jobs:
                        self.turn(place, round_no, who, make, jobs, 16 * GIB)
                    if self.wanted(who, "mkfs"):
                        self.whole(place, round_no, who, make)
        finally:
            self.stop_proxy()

    def whole(self, place, round_no, who, make):
        wanted = [job for job in WHOLE if job in self.arguments.jobs]
        if "mkfs" in wanted and who not in ("nbdkit S3", "s3backer"):
            self.turn(place, round_no, who, make, ["mkfs", "trim"] if "trim" in wanted else ["mkfs"], 2 << 40)
        if "trim" in wanted and who == "ashlar":
            self.turn(place, round_no, who, make, ["trim"], 16 << 40)
        if "reopen" in wanted and who == "ashlar" and round_no == 1 and place in self.arguments.reopen:
            self.turn(place, round_no, who, make, ["reopen"], 256 * GIB)

    def baselines(self, place, round_no):
        """What the store and the disk can do by themselves."""
        note = self.note(place, "plain", round_no)
        folder = tempfile.mkdtemp(dir=self.work)
        url = f"file://{folder}/plain" if place == "local" else f"s3://{self.s3['BUCKET']}"

        def ask(name, size, parallel, total):
            command = [self.ashlar, "bench", url, "--json", "--sizes", str(size), "--parallel", str(parallel), "--requests",
                       str(max(total // size, 60)), "--bytes", str(total), "--time", f"{self.sizes.slow}s"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True,
                                  env={**os.environ, **self.s3_environment(), "ASHLAR_LOG__LEVEL": "error"})
            for cell in json.loads(done.stdout)["cells"]:
                rate = cell["requests"] * cell["size"] / cell["seconds"]
                note(f"{cell['operation']} {name}", {"rate": rate, "p50": cell["p50_micros"] / 1e6,
                                                     "p99": cell["p99_micros"] / 1e6})
        if {"seqwrite", "seqread"} & set(self.arguments.jobs):
            ask("8 MiB × 8", 8 * MIB, 8, self.sizes.sequential)
            ask("1 MiB × 32", MIB, 32, self.sizes.sequential)
        if "flush" in self.arguments.jobs:
            ask("8 KiB × 1", 8 << 10, 1, MIB)
            path = os.path.join(folder, "sync")
            disk = SimpleNamespace(folder=folder, name="the disk", uri=lambda: "")
            job, _ = fio(disk, self.sizes.seconds, ioengine="psync", filename=path, rw="write", bs="8k", size=64 * MIB,
                         fdatasync=1, uri=None, time_based=1, overwrite=1)
            lat = job["sync"]["lat_ns"]
            note("fdatasync", {"p50": lat["percentile"]["50.000000"] / 1e9, "p99": lat["percentile"]["99.000000"] / 1e9})
        shutil.rmtree(folder, ignore_errors=True)

    def about(self):
        def said(*command):
            return subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[:1] or ["?"]
        package = lambda name: said("dpkg-query", "-W", "-f", "${Version}", name)[0]
        commit = said("git", "-C", self.arguments.repository, "rev-parse", "--short", "HEAD")[0]
        return {"commit": commit, "kernel": platform.release(), "processors": os.cpu_count(), "rounds": self.arguments.rounds,
                "quick": self.arguments.quick,
                "packages": {name: package(name) for name in ("fio", "nbdkit", "qemu-utils", "s3backer", "radosgw")}}


def main():
    words = lambda text: text.split(",")
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--repository", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="short phases")
    parser.add_argument("--rounds", type=int, help="3, or 2 with --quick")
    parser.add_argument("--places", type=words, default=["local", "s3-0ms", "s3-20ms"], help="local, s3-0ms, s3-20ms")
    parser.add_argument("--jobs", "--only", type=words, default=[*JOBS, *WHOLE], help=", ".join([*JOBS, *WHOLE]))
    parser.add_argument("--reopen", type=words, default=["local", "s3-0ms", "s3-20ms"], help="places of the job reopen")
    parser.add_argument("--opened", type=lambda text: [int(part) * GIB for part in words(text)],
                        help="GiB after which reopen opens; 1,10,100, or 1,10 with --quick")
    parser.add_argument("--peers", type=words, help="only these, as they are named in the table")
    parser.add_argument("--output", help="folder for benchmarks.md, .json and the plots; docs of this tree if not given")
    parser.add_argument("--add", action="store_true",
                        help="keep what benchmarks.json has of other places and jobs; baselines are kept and added to")
    parser.add_argument("--report-only", action="store_true", help="write the table anew from benchmarks.json")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 3)
    arguments.output = os.path.abspath(arguments.output or os.path.join(arguments.repository, "docs"))
    for job in arguments.jobs:
        if job not in JOBS + WHOLE:
            parser.error(f"there is no job {job}; there are {', '.join(JOBS + WHOLE)}")
    os.makedirs(arguments.output, exist_ok=True)
    if not arguments.report_only:
        work = tempfile.mkdtemp(prefix="ashlar-bench.")
        bench = Bench(arguments, work)
        try:
            for place in arguments.places:
                bench.place(place)
            bench.save()
        finally:
            bench.stop_proxy()
            bench.stop_s3()
            shutil.rmtree(work, ignore_errors=True)
    report.write(arguments.output)


main()
