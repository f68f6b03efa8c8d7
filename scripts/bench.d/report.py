"""The table and the plots, from benchmarks.json: medians over the rounds, ratios, and what a month costs."""

import json
import os
from statistics import median

# List prices of S3 (us-east-1, standard) in dollars.
PUT_PRICE = 0.005 / 1000        # a PUT, POST or LIST
GET_PRICE = 0.0004 / 1000       # a GET or HEAD
STORAGE_PRICE = 0.023           # a GB for a month
MONTH_SECONDS = 30 * 24 * 3600

MIB, GIB = 1 << 20, 1 << 30
# What a month is reckoned for: so much is kept, and written or read at this steady pace.
KEPT, PACE = 1000 * 10**9, MIB

JOBS = [
    ("seqwrite", "sequential write 1 MiB QD8, until it is in the store", "rate"),
    ("seqread cold", "sequential read 1 MiB QD8, cold", "rate"),
    ("seqread warm", "sequential read 1 MiB QD8, warm", "rate"),
    ("burst", "random write 4 KiB QD32, within the dirty bound", "iops"),
    ("randwrite", "random write 4 KiB QD32, sustained", "iops"),
    ("randwrite", "the same, until it is in the store", "settled"),
    ("randread cold", "random read 4 KiB QD32, cold", "iops"),
    ("randread warm", "random read 4 KiB QD32, warm", "iops"),
    ("mixed", "70/30 read/write 4 KiB QD32", "iops"),
    ("mixed", "the same: p99 of reads", "p99"),
    ("flush", "4 KiB write and then FLUSH, again and again: both together", "pairs"),
    ("flush", "the FLUSH of these: p50", "p50"),
    ("flush", "the same: p99", "p99"),
    ("mkfs", "mkfs.ext4 of 2 TiB", "seconds"),
    ("trim", "TRIM of the whole device (2 TiB; ashlar also 16 TiB)", "seconds"),
    ("open after 1 GiB", "time to open after 1 GiB of random writes and a kill", "seconds"),
    ("open after 10 GiB", "the same, 10 GiB", "seconds"),
    ("open after 100 GiB", "the same, 100 GiB (of compressible data)", "seconds"),
]
PLACES = {
    "local": "On this machine: a directory, and no store",
    "s3-0ms": "S3 (radosgw on the same machine), 0 ms",
    "s3-20ms": "S3 (the same), 20 ms of round trip",
}


class Results:
    """Medians by place, server, job and figure."""

    def __init__(self, rows):
        self.rows = rows

    def places(self):
        return [place for place in PLACES if any(row["place"] == place for row in self.rows)]

    def servers(self, place):
        names = [row["who"] for row in self.rows if row["place"] == place and row["who"] != "plain"]
        return list(dict.fromkeys(names))

    def of(self, place, who, job, figure):
        found = [row[figure] for row in self.rows
                 if (row["place"], row["who"], row["job"]) == (place, who, job) and row.get(figure) is not None]
        return median(found) if found else None


def shown(value, figure):
    if value is None:
        return "–"
    if figure == "rate":
        return f"{value / MIB:.0f} MiB/s"
    if figure in ("iops", "pairs", "settled"):
        return f"{value:,.0f}/s"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.2f} s"


def table(header, rows):
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def speeds(results, place):
    names = results.servers(place)
    rows = []
    for job, title, figure in JOBS:
        values = [results.of(place, name, job, figure) for name in names]
        if any(value is not None for value in values):
            rows.append([title, *(shown(value, figure) for value in values)])
    return table(["work", *names], rows)


def costs(results, place):
    """Requests and bytes of the phases that write or read cold, and what a month of that costs."""
    rows = []
    for job in ("seqwrite", "randwrite", "flush", "seqread cold", "randread cold"):
        for name in results.servers(place):
            of = lambda figure: results.of(place, name, job, figure) or 0
            moved = of("moved")
            if not moved:
                continue
            puts, gets, lists = of("put"), of("get") + of("head"), of("list")
            price = (puts + lists) * PUT_PRICE + gets * GET_PRICE
            writes = "read" not in job
            spread = of("stored") / of("logical") if of("logical") else None
            rows.append([job, name, f"{moved / MIB:,.0f} MiB", f"{puts:,.0f}", f"{gets:,.0f}", f"{of('delete'):,.0f}",
                         f"{lists:,.0f}", f"{puts / (moved / GIB):,.0f}" if writes else "–",
                         f"{of('bytes_up') / moved:.2f}" if writes else f"{of('bytes_down') / moved:.2f}",
                         f"{spread:.2f}" if spread else "–",
                         f"{price / moved * PACE * MONTH_SECONDS:,.2f}",
                         f"{spread * KEPT / 10**9 * STORAGE_PRICE:,.2f}" if spread else "–"])
    header = ["work", "server", "moved", "PUT", "GET, HEAD", "DELETE", "LIST", "PUTs per GiB", "bytes to or from the store per byte",
              "stored bytes per logical byte", "a month's requests, $", "a month's storage, $"]
    return table(header, rows)


def machine(results, place):
    rows = []
    for job in ("seqwrite", "seqread cold", "randwrite", "randread warm"):
        for name in results.servers(place):
            cpu, moved = results.of(place, name, job, "cpu_s"), results.of(place, name, job, "moved")
            if cpu is not None and moved:
                rss = results.of(place, name, job, "rss")
                rows.append([job, name, f"{cpu / (moved / GIB):.1f}", f"{rss / MIB:.0f} MiB"])
    return table(["work", "server", "CPU seconds per GiB", "largest RSS"], rows)


def plain(results, place):
    jobs = list(dict.fromkeys(row["job"] for row in results.rows if (row["place"], row["who"]) == (place, "plain")))
    rows = [[job, shown(results.of(place, "plain", job, "rate"), "rate"), shown(results.of(place, "plain", job, "p50"), "p50"),
             shown(results.of(place, "plain", job, "p99"), "p99")] for job in jobs]
    return table(["requests", "together", "p50", "p99"], rows)


def goals(results):
    """The ratios that the project wants to reach, as measured."""
    of = results.of

    def ratio(a, b):
        return None if a is None or not b else a / b

    def line(work, goal, value, holds):
        said = "not measured" if value is None else f"{value:.2f}"
        return [work, goal, said, "–" if value is None else ("yes" if holds(value) else "**no**")]

    far, near = "s3-20ms", "s3-0ms"
    least = lambda bound: lambda value: value >= bound
    most = lambda bound: lambda value: value <= bound
    beside = lambda figure: ratio(of(far, "ashlar", "randwrite", figure), of(far, "s3backer", "randwrite", figure))
    own_bytes = lambda place: ratio((of(place, "ashlar", "randwrite", "bytes_up") or 0) - (of(place, "ashlar", "randwrite", "collected") or 0),
                                    of(place, "ashlar", "randwrite", "moved"))
    per_gib = lambda place: ratio(of(place, "ashlar", "randwrite", "put"), (of(place, "ashlar", "randwrite", "moved") or 0) / GIB)
    rows = [
        line("warm 4 KiB random read QD32", "≥ 1.0 × nbdkit memory",
             ratio(of("local", "ashlar", "randread warm", "iops"), of("local", "nbdkit memory", "randread warm", "iops")), least(1.0)),
        line("4 KiB random write QD32 within the dirty bound", "≥ 0.7 × nbdkit memory",
             ratio(of("local", "ashlar", "burst", "iops"), of("local", "nbdkit memory", "burst", "iops")), least(0.7)),
    ]
    for place, name in (("local", "directory"), (near, "S3, 0 ms"), (far, "S3, 20 ms")):
        rows.append(line(f"sequential write, {name}", "≥ 0.85 × plain PUTs of 8 MiB, 8 at once",
                         ratio(of(place, "ashlar", "seqwrite", "rate"), of(place, "plain", "put 8 MiB × 8", "rate")), least(0.85)))
        best = [of(place, "plain", f"get {what}", "rate") or 0 for what in ("8 MiB × 8", "1 MiB × 32")]
        rows.append(line(f"cold sequential read, {name}", "≥ 0.85 × the better of plain GETs of 1 and 8 MiB",
                         ratio(of(place, "ashlar", "seqread cold", "rate"), max(best)), least(0.85)))
    rows += [
        line("FLUSH after each 4 KiB write, 20 ms, store, p50", "≤ 1.25 × one PUT",
             ratio(of(far, "ashlar", "flush", "p50"), of(far, "plain", "put 8 KiB × 1", "p50")), most(1.25)),
        line("the same, journal, p50", "≤ 1.5 × fdatasync",
             ratio(of(far, "ashlar (journal)", "flush", "p50"), of(far, "plain", "fdatasync", "p50")), most(1.5)),
        line("4 KiB random write QD32, 20 ms, for a minute", "≥ 100 × s3backer", beside("iops"), least(100)),
        line("– the same, with the time until all is in the store", "≥ 100 × s3backer", beside("settled"), least(100)),
        line("– bytes put per byte written, garbage collection aside", "≤ 1.15", own_bytes(far), most(1.15)),
        line("– PUTs per GiB, with garbage collection and checkpoints", "≤ 140", per_gib(far), most(140)),
        line("cold 4 KiB random read QD32, 20 ms", "≥ 0.8 × QD / latency",
             ratio(of(far, "ashlar", "randread cold", "iops"), 32 / 0.02), least(0.8)),
    ]
    trims = [row["seconds"] for row in results.rows if row["job"] == "trim" and row.get("trimmed", 0) >= 16 << 40 and row["place"] == far]
    rows.append(line("TRIM of a whole 16 TiB volume, 20 ms", "< 1 s", median(trims) if trims else None, lambda value: value < 1))
    opens = of(far, "ashlar", "open after 100 GiB", "seconds")
    rows.append(line("time to open after 100 GiB, 20 ms", "< 2 s", opens, lambda value: value < 2))
    return table(["work", "goal", "measured", "holds"], rows)


def plot(results, folder):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ashlar"   # the same figures give the same file
    from matplotlib import pyplot
    made = []
    for place in results.places():
        names = results.servers(place)
        kinds = [(job, title, figure) for job, title, figure in JOBS if figure in ("rate", "iops")
                 and any(results.of(place, name, job, figure) for name in names)]
        if not kinds:
            continue
        figure_, axes = pyplot.subplots(len(kinds), 1, figsize=(8, 1.1 + 1.25 * len(kinds)), squeeze=False)
        for axis, (job, title, figure) in zip(axes[:, 0], kinds):
            shown_names = [name for name in names if results.of(place, name, job, figure)]
            values = [results.of(place, name, job, figure) for name in shown_names]
            bars = axis.barh(shown_names, values, color=["#1f6f8b" if name.startswith("ashlar") else "#b8b8b8" for name in shown_names])
            axis.bar_label(bars, [shown(value, figure) for value in values], padding=3, fontsize=8)
            axis.set_title(title, fontsize=9, loc="left")
            axis.invert_yaxis()
            axis.set_xlim(0, max(values) * 1.2)
            axis.tick_params(labelsize=8, bottom=False, labelbottom=False)
            for side in ("top", "right", "bottom"):
                axis.spines[side].set_visible(False)
        figure_.tight_layout()
        name = f"benchmarks-{place}.svg"
        figure_.savefig(os.path.join(folder, name), metadata={"Date": None})
        pyplot.close(figure_)
        made.append(name)
    return made


def rounds(results):
    """Places may have been measured in runs of their own."""
    most = [max(row["round"] for row in results.rows if row["place"] == place) for place in results.places()]
    return f"{min(most)} to {max(most)}" if min(most) < max(most) else f"{most[0]}"


def write(folder):
    with open(os.path.join(folder, "benchmarks.json")) as file:
        stored = json.load(file)
    about, results = stored["about"], Results(stored["results"])
    plots = plot(results, folder)
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    kind = "short phases (`--quick`)" if about["quick"] else "full phases"
    parts = [
        "# Benchmarks",
        f"Written by `scripts/bench`: {rounds(results)} rounds of {kind}, the servers taking turns within each round; medians. "
        f"{about['processors']} processors shared by the client, the server and the store, so ratios count, and not the figures "
        f"themselves. Kernel {about['kernel']}; {packages}; ashlar at {about['commit']}.",
        "One connection over a Unix socket (fio's nbd engine), incompressible data, default settings everywhere except where the "
        "name says otherwise. Cold: after a restart of the server. The round trip to S3 is that of our own proxy "
        "(`examples/latency-proxy.rs`), which counts everybody's requests, too. s3backer 1.5 is served by nbdkit from its FUSE "
        "mount; its FLUSH does nothing, so its writes count as done when it has been unmounted, and for FLUSH it runs with "
        "`--blockCacheSync`.",
        "## Where we want to be, and where we are", goals(results),
    ]
    for place in results.places():
        parts += [f"## {PLACES[place]}", speeds(results, place), "### The store by itself", plain(results, place)]
        if place != "local":
            parts += ["### Requests", "Until everything is in the store; what is stored for each byte that the disk holds is as of then, "
                      "with what has yet to be collected. A month is reckoned at S3's list prices "
                      f"(${STORAGE_PRICE} for a GB, ${PUT_PRICE * 1000:g} for a thousand PUTs or LISTs, ${GET_PRICE * 1000:g} for a thousand GETs, DELETEs "
                      "for nothing): the requests of 1 MiB/s of this work from its first day to its last, and 1 TB of data kept.",
                      costs(results, place)]
        parts += ["### The machine", machine(results, place)]
        parts += [f"![{PLACES[place]}]({name})" for name in plots if name == f"benchmarks-{place}.svg"]
    failed = [f"* {row['place']}, {row['who']}, round {row['round']}: {row['why']}" for row in results.rows if row["job"] == "failed"]
    if failed:
        parts += ["## What could not be measured", "\n".join(failed)]
    # What the figures mean is for people to say; it is kept beside this program, and looked at again with each full run.
    with open(os.path.join(os.path.dirname(__file__), "notes.md")) as file:
        parts.append(file.read().rstrip())
    with open(os.path.join(folder, "benchmarks.md"), "w") as file:
        file.write("\n\n".join(parts) + "\n")
