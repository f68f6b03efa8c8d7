"""Compares what a process took and keeps with what it may: one line of the table of scripts/memory, and the exit status."""

import json
import pathlib
import sys

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MIB = 1 << 20


def size(text):
    """A size as `ashlar config` prints it."""
    number, unit = text.split()
    return int(float(number) * UNITS[unit])


def bounds(config):
    """The rows of docs/memory.md for one volume in a directory, and one connection."""
    volume, nbd = config["volume"], config["nbd"]
    segment, batch, window = size(volume["segment_size"]), size(volume["gc"]["batch"]), volume["upload_window"]
    return {
        "requests in flight": size(nbd["bytes_in_flight"]) + MIB,
        "log": size(config["log"]["buffer"]),
        "dirty bytes": size(volume["dirty_bytes"]),
        "encoded segments": window * 2 * segment,
        "laid out for O_DIRECT": window * 2 * MIB,
        "idle buffers": size(config["store"]["idle_buffers"]),
        "collection": 3 * batch + 4 * segment,
        "map": size(volume["map_memory"]),
        "merges": (8 + 10 + 16) * MIB,
        "cache": size(config["cache"]["memory"]),
    }


def held(status):
    """What it holds on purpose when nothing is asked of it."""
    return sum(kind["used"] for kind in status["memory"])


def process(path):
    lines = dict(line.split(":", 1) for line in pathlib.Path(path).read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))


def whole(load, config, proc, most, kept, samples):
    """What a process took of `memory`, at most, while it worked and at rest: a line, and the exit status."""
    may, (peak, resident) = size(config["memory"]), process(proc)
    taken = sorted(int(line) * 1024 for line in samples[len(samples) // 2 :])
    figures = [f"{may / MIB:.0f}"]
    for number in [peak, taken[len(taken) // 2], *([] if kept == "-" else [resident])]:
        figures += [f"{number / MIB:.0f}", f"{100 * number / may:.0f}"]
    print(f"{load:20}" + "".join(f" {figure:>9}" for figure in figures), flush=True)
    sys.exit(0 if 100 * peak / may <= int(most) else 1)


def main():
    load, folder, proc, most, kept, *samples = sys.argv[1:]
    read = lambda name: json.loads((pathlib.Path(folder) / name).read_text())
    if samples:
        whole(load, read("config"), proc, most, kept, pathlib.Path(samples[0]).read_text().split())
    may, on_purpose, (peak, resident) = sum(bounds(read("config")).values()), held(read("status")), process(proc)
    shares = [100 * peak / may, 100 * resident / on_purpose]
    figures = [f"{may / MIB:.0f}", f"{peak / MIB:.0f}", f"{shares[0]:.0f}"]
    # "-": it is not at rest.
    figures += ["-"] * 3 if kept == "-" else [f"{on_purpose / MIB:.0f}", f"{resident / MIB:.0f}", f"{shares[1]:.0f}"]
    print(f"{load:20}" + "".join(f" {figure:>9}" for figure in figures), flush=True)
    sys.exit(0 if shares[0] <= int(most) and (kept == "-" or shares[1] <= int(kept)) else 1)


if __name__ == "__main__":
    main()
