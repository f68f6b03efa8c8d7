"""What volumes of several sizes cost: `examples/ghost` measures one, this makes a table of all of them, each line with its goal. See
scripts/bench. Prints the table; with --output it is written to a file, too, with the figures beside it (.json)."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
MEASUREMENTS = ["open", "idle", "write", "kill", "gc"]
# Processor seconds for a GiB of random writes to a volume of 1 GiB before the map was layered.
CPU_BEFORE = 8.6


def size(text):
    match = re.fullmatch(r"(\d+)\s*([KMGT]iB)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; sizes are written like 100GiB")
    return int(match[1]) * UNITS[match[2]]


def named(count):
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.{0 if count % UNITS[unit] == 0 else 1}f} {unit}"
    return f"{count:.0f} B"


class Line:
    """A line of the table: what it needs, how a figure is made of it, how it is written, and when it holds."""

    def __init__(self, what, goal, figure, text, holds=None):
        self.what, self.goal, self.figure, self.text, self.holds = what, goal, figure, text, holds

    def cells(self, results):
        cells = []
        for result in results:
            try:
                figure = self.figure(result)
            except (KeyError, ZeroDivisionError):
                cells.append("–")
                continue
            text = self.text(figure)
            cells.append(text if self.holds is None or self.holds(figure) else f"**{text}**")
        return cells


def made_up(what):
    """What is known of a ghost because it was made so; a real volume has no such figure."""
    def figure(result):
        if result["real"]:
            raise KeyError(what)
        return result[what]
    return figure


def gets_per_mib(gc):
    """A survey of the map is for all that it finds: before that was moved there is no figure."""
    if gc["moved_mib"] < gc.get("enough_mib", 0):
        raise KeyError("it was not all moved")
    return gc["gets"] / gc["moved_mib"]


def lines(results):
    smallest = min(results, key=lambda result: result["size"])
    rate = lambda r: r["write"]["iops"] / smallest["write"]["iops"]
    per_mib = lambda r: gets_per_mib(r["gc"])
    number = lambda places: lambda n: f"{n:,.{places}f}"
    return [
        Line("root of a checkpoint", "some KiB", made_up("root_bytes"), named, lambda n: n <= 64 << 10),
        Line("pages of the map", "", made_up("map_bytes"), named),
        Line("bytes put for maps, tables and checkpoints per byte written", "≤ 0.03", lambda r: r["write"]["put_per_byte"], number(4),
             lambda n: n <= 0.03),
        Line("most memory over the sum of its bounds", "≤ 1.10", lambda r: r["memory"]["most"] / r["memory"]["bounds"], number(2),
             lambda n: n <= 1.1),
        Line("memory after a quiet while over what is held on purpose", "≤ 1.25",
             lambda r: r["memory"]["quiet"] / r["memory"]["on_purpose"], number(2), lambda n: n <= 1.25),
        Line("requests to open, 1 GiB after the last checkpoint", "≤ 16", lambda r: r["open"]["requests"], number(0), lambda n: n <= 16),
        Line("time to open, the same", "≤ 1 s", lambda r: r["open"]["seconds"], lambda n: f"{n:.2f} s", lambda n: n <= 1),
        Line("requests to open after a clean end", "", lambda r: r["open_closed"]["requests"], number(0)),
        Line("cold random 4 KiB read, QD1, p50", "≤ 2 round trips", lambda r: r["read"]["round_trips"], number(0), lambda n: n <= 2),
        Line("the same in time", "", lambda r: r["read"]["p50_ms"], lambda n: f"{n:.0f} ms"),
        Line("longest hold of the lock while writing", "≤ 1 ms", lambda r: r["lock"]["clock"]["ms"], lambda n: f"{n:,.1f} ms",
             lambda n: n <= 1),
        Line("the same in processor time", "≤ 1 ms", lambda r: r["lock"]["cpu"]["ms"], lambda n: f"{n:,.1f} ms", lambda n: n <= 1),
        Line("where that was", "", lambda r: r["lock"]["cpu"]["at"], lambda at: f"`{at.removeprefix('src/')}`"),
        Line("longest hold of the lock, TRIM of the volume, processor time", "≤ 1 ms", lambda r: r["trim"]["lock"]["cpu"]["ms"], lambda n: f"{n:,.1f} ms",
             lambda n: n <= 1),
        Line("longest hold of the lock, collection, processor time", "≤ 1 ms", lambda r: r["gc"]["lock"]["cpu"]["ms"], lambda n: f"{n:,.1f} ms",
             lambda n: n <= 1),
        Line("GETs of collection per MiB moved, map_memory = 16MiB", "≤ 2", per_mib, number(1), lambda n: n <= 2),
        Line("TRIM of the whole volume and FLUSH", "≤ 0.2 s", lambda r: r["trim"]["seconds"], lambda n: f"{n:.2f} s", lambda n: n <= 0.2),
        Line("until only deletes are left", "", lambda r: r["trim"]["until_only_deletes"], lambda n: f"{n:.2f} s"),
        Line("requests until then, but for deletes", "O(1)", lambda r: r["trim"]["requests"], number(0), lambda n: n <= 16),
        Line("objects deleted with one request", "batches", lambda r: r["trim"]["objects_deleted"] / r["trim"]["deletes"], number(0)),
        Line("4 KiB random write QD32", "", lambda r: r["write"]["iops"], lambda n: f"{n:,.0f}/s"),
        Line(f"the same over that of {named(smallest['size'])}", "≥ 0.8", rate, number(2), lambda n: n >= 0.8),
        Line("processor seconds per GiB of that", f"≤ {0.7 * CPU_BEFORE:.1f}", lambda r: r["write"]["cpu_seconds_per_gib"], number(1),
             lambda n: n <= 0.7 * CPU_BEFORE),
        Line("checkpoint of an idle volume after one write: PUTs", "2", lambda r: r["idle"]["puts"], number(1), lambda n: n <= 2),
        Line("the same: bytes", "≤ 64 KiB", lambda r: r["idle"]["bytes"], named, lambda n: n <= 64 << 10),
    ]


def table(results):
    heads = [named(result["size"]) + (" (real)" if result["real"] else "") for result in results]
    rows = [["what", "goal", *heads], ["---", "---", *["---:"] * len(heads)]]
    rows += [[line.what, line.goal, *line.cells(results)] for line in lines(results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def measure(arguments, bytes_, real):
    """Each measurement in a process of its own, so that none finds the memory of another."""
    found = {"size": bytes_, "real": real}
    for what in arguments.only:
        command = [arguments.program, "--size", f"{bytes_ >> 20}MiB", "--write", f"{arguments.write >> 20}MiB", "--quiet", arguments.quiet,
                   "--round-trip", arguments.round_trip, "--only", what, *(["--real"] if real else [])]
        with tempfile.TemporaryDirectory(prefix="ashlar-ghost.") as work:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": work})
        if done.returncode != 0:
            print(f"{' '.join(command)} failed with {done.returncode}; its lines stay empty", file=sys.stderr)
            continue
        found |= json.loads(done.stdout)
    return found


def main():
    words = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(prog="scripts/bench --scale")
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=words(size), default="1GiB,100GiB,1TiB,16TiB,100TiB", help="1GiB,100GiB,1TiB,16TiB,100TiB")
    parser.add_argument("--real", type=words(size), default="1GiB",
                        help="sizes of real volumes, which are written densely and lie in memory; 1GiB; 0MiB for none")
    parser.add_argument("--write", type=size, default="1GiB", help="bytes to be written at random; 1GiB")
    parser.add_argument("--quiet", default="60s", help="how long it is quiet before memory is looked at; 60s")
    parser.add_argument("--round-trip", default="20ms", help="what a request to the store takes; 20ms")
    parser.add_argument("--only", type=words(str), default=MEASUREMENTS, help=",".join(MEASUREMENTS))
    parser.add_argument("--output", help="a file for the table; the figures lie beside it")
    parser.add_argument("--from", dest="figures", help="make the table of the figures in that file, and measure nothing")
    arguments = parser.parse_args()
    for what in arguments.only:
        if what not in MEASUREMENTS:
            parser.error(f"there is no measurement {what}; there are {', '.join(MEASUREMENTS)}")
    if arguments.figures:
        with open(arguments.figures) as file:
            results = json.load(file)
    else:
        runs = [(real, True) for real in arguments.real if real] + [(bytes_, False) for bytes_ in arguments.sizes]
        results = [measure(arguments, *run) for run in runs]
    text = table(results)
    print(text)
    if arguments.output:
        with open(arguments.output, "w") as file:
            file.write(text)
        with open(os.path.splitext(arguments.output)[0] + ".json", "w") as file:
            json.dump(results, file, indent=1)


main()
