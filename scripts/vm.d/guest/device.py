"""What a block device does, by fio. Needs nothing but the standard library and fio.

measure FILE WORDS FIO-ARGUMENTS…: each load once, one line of JSON each in FILE.
table FILE: medians over the lines of a way and a load.
"""

import json
import statistics
import subprocess
import sys

LOADS = {
    "random read, 4 KiB, one at a time": ["--rw=randread", "--bs=4k", "--iodepth=1"],
    "random read, 4 KiB, 32": ["--rw=randread", "--bs=4k", "--iodepth=32"],
    "random write, 4 KiB, 32": ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
    "read, 1 MiB, 4": ["--rw=read", "--bs=1M", "--iodepth=4"],
    "write, 1 MiB, 4": ["--rw=write", "--bs=1M", "--iodepth=4"],
}
USUAL = ["--name=load", "--size=128M", "--time_based", "--ramp_time=1", "--runtime=5", "--refill_buffers", "--output-format=json"]


def measure(path, way, arguments):
    for load, words in LOADS.items():
        ran = subprocess.run(["fio", *USUAL, *words, *arguments], stdout=subprocess.PIPE, check=True)
        # Notes of the engine may stand before it.
        job = json.loads(ran.stdout[ran.stdout.index(b"{"):])["jobs"][0]
        half = job["read"] if "read" in words[0] else job["write"]
        if job["error"] or not half["total_ios"]:
            sys.exit(f"{way}: {load}: nothing was measured")
        percentiles = half["clat_ns"]["percentile"]
        with open(path, "a") as file:
            line = {"way": way, "load": load, "iops": half["iops"], "mib": half["bw_bytes"] / 2**20,
                    "p50": percentiles["50.000000"] / 1e6, "p99": percentiles["99.000000"] / 1e6}
            file.write(json.dumps(line) + "\n")


def table(path):
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    for load in LOADS:
        for way in dict.fromkeys(line["way"] for line in lines):
            found = [line for line in lines if line["load"] == load and line["way"] == way]
            iops, mib, p50, p99 = (statistics.median(line[key] for line in found) for key in ("iops", "mib", "p50", "p99"))
            print(f"== {load} | {way} | {iops:.0f}/s | {mib:.1f} MiB/s | p50 {p50:.2f} ms | p99 {p99:.2f} ms", flush=True)


if __name__ == "__main__":
    match sys.argv[1]:
        case "measure":
            measure(sys.argv[2], sys.argv[3], sys.argv[4:])
        case "table":
            table(sys.argv[2])
