"""The jobs: what is asked of each server, and what is noted. All figures are bytes, seconds and counts."""

import json
import os
import subprocess
import time

MIB, GIB = 1 << 20, 1 << 30


def fio(server, seconds, **options):
    """Runs one fio job; returns its JSON, with the wall time it took."""
    arguments = {"name": "job", "ioengine": "nbd", "uri": server.uri(), "randrepeat": 0, "refill_buffers": 1,
                 "buffer_compress_percentage": 0, "runtime": seconds, "percentile_list": "50:99", "output-format": "json",
                 **options}
    command = ["fio", *(f"--{key}={value}" for key, value in arguments.items() if value is not None)]
    begin = time.monotonic()
    done = subprocess.run(command, cwd=server.folder, capture_output=True, text=True, timeout=seconds * 20 + 600)
    took = time.monotonic() - begin
    if done.returncode != 0:
        raise RuntimeError(f"fio {arguments['rw']} {arguments['bs']} failed on {server.name}: {done.stderr.strip()[-300:]}")
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio saw error {job['error']} on {server.name}")
    return job, took


def quantile(part, which):
    return part.get("percentile", {}).get(f"{which}.000000", 0) / 1e9


class Jobs:
    """One server's turn in one round. `note` takes the job's name and its figures."""

    def __init__(self, server, sizes, note):
        self.server, self.sizes, self.note = server, sizes, note
        self.written = 0   # bytes from the start of the device that hold data

    def run(self, wanted):
        self.server.start()
        try:
            for name in wanted:
                getattr(self, name)()
        finally:
            self.server.stop()

    def phase(self, name, work):
        """Runs `work`, which returns figures; adds what it cost the store, the processor and memory."""
        meter = self.server.bench.counts
        before, cpu = meter(), self.server.cpu_seconds()
        figures = work()
        cpu = self.server.cpu_seconds() - cpu
        if cpu >= 0:   # not if the server was restarted meanwhile
            figures["cpu_s"] = cpu
            figures["rss"] = self.server.peak_bytes()
        figures.update({key: value - before[key] for key, value in meter().items()})
        self.note(name, figures)

    # ---- sequential

    def seqwrite(self):
        def work():
            begin = time.monotonic()
            job, _ = fio(self.server, self.sizes.slow, rw="write", bs="1M", iodepth=8, size=self.sizes.sequential, end_fsync=1)
            self.server.drain()
            took, moved = time.monotonic() - begin, job["write"]["io_bytes"]
            self.written = moved
            return {"moved": moved, "seconds": took, "rate": moved / took, **self.server.kept(moved)}
        self.phase("seqwrite", work)

    def filled(self):
        """There is data to be read."""
        if not self.written:
            self.seqwrite()

    def seqread(self):
        self.filled()
        if self.server.keeps:
            self.server.restart()
            self.phase("seqread cold", lambda: self.sequential(self.written))
        near = min(self.written, self.sizes.near)
        self.sequential(near)
        self.phase("seqread warm", lambda: self.sequential(near))

    def sequential(self, size):
        job, _ = fio(self.server, self.sizes.slow, rw="read", bs="1M", iodepth=8, size=size)
        read = job["read"]
        return {"moved": read["io_bytes"], "seconds": read["runtime"] / 1000, "rate": read["bw_bytes"]}

    # ---- random

    def randread(self):
        self.filled()
        # A server that could not write all in time has so little to read that it would soon have read it all.
        if self.server.keeps and self.written >= self.sizes.sequential:
            self.server.restart()
            self.phase("randread cold", lambda: self.random(self.written, "randread"))
        near = min(self.written, self.sizes.near)
        self.sequential(near)
        self.phase("randread warm", lambda: self.random(near, "randread"))

    def random(self, size, how, seconds=None, **more):
        job, _ = fio(self.server, seconds or self.sizes.seconds, rw=how, bs="4k", iodepth=32, size=size, time_based=1, norandommap=1, **more)
        parts = [job[kind] for kind in ("read", "write") if job[kind]["total_ios"]]
        moved = sum(part["io_bytes"] for part in parts)
        figures = {"moved": moved, "iops": sum(part["iops"] for part in parts),
                   "p50": quantile(parts[0]["clat_ns"], 50), "p99": quantile(parts[0]["clat_ns"], 99)}
        if len(parts) == 2:
            figures["p99 write"] = quantile(parts[1]["clat_ns"], 99)
        return figures

    def burst(self):
        """Random writes that fit into the dirty bound."""
        def work():
            job, _ = fio(self.server, self.sizes.slow, rw="randwrite", bs="4k", iodepth=32, size=GIB, io_size=self.sizes.burst,
                         norandommap=1)
            write = job["write"]
            return {"moved": write["io_bytes"], "iops": write["iops"], "p50": quantile(write["clat_ns"], 50),
                    "p99": quantile(write["clat_ns"], 99)}
        self.phase("burst", work)

    def randwrite(self):
        """Sustained: the requests, and the pace `settled`, are those until all of it is in the store."""
        def work():
            begin, collected = time.monotonic(), self.server.collected()
            figures = self.random(self.sizes.region, "randwrite", self.sizes.sustained if self.server.bench.proxy else None)
            fio(self.server, self.sizes.slow, rw="write", bs="4k", iodepth=1, size="4k", end_fsync=1)
            self.server.drain()
            settled = figures["moved"] / 4096 / (time.monotonic() - begin)
            return {**figures, "settled": settled, "collected": self.server.collected() - collected, **self.server.kept(None)}
        self.phase("randwrite", work)

    def mixed(self):
        self.filled()
        near = min(self.written, self.sizes.near)
        self.phase("mixed", lambda: self.random(near, "randrw", rwmixread=70))

    def flush(self):
        """A FLUSH after each 4 KiB write."""
        def work():
            job, _ = fio(self.server, self.sizes.seconds, rw="randwrite", bs="4k", iodepth=1, size=self.sizes.region,
                         time_based=1, norandommap=1, fsync=1)
            flushes = job["sync"]
            lat = flushes["lat_ns"]
            return {"moved": job["write"]["io_bytes"], "flushes": flushes["total_ios"],
                    "pairs": flushes["total_ios"] / (job["job_runtime"] / 1000), "p50": quantile(lat, 50),
                    "p99": quantile(lat, 99)}
        self.phase("flush", work)

    # ---- whole devices

    def mkfs(self):
        """mkfs.ext4 through libnbd's own FUSE bridge, so that no kernel module is needed."""
        def work():
            point = os.path.join(self.server.folder, "nbd")
            open(point, "wb").close()
            bridge = subprocess.Popen(["nbdfuse", point, self.server.uri()], stdout=subprocess.DEVNULL)
            while os.path.getsize(point) != self.server.size:
                if bridge.poll() is not None:
                    raise RuntimeError("nbdfuse left")
                time.sleep(0.01)
            begin = time.monotonic()
            try:
                subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", point], check=True,
                               stderr=subprocess.DEVNULL)
                took = time.monotonic() - begin
            finally:
                subprocess.run(["umount", point], check=True)
                bridge.wait(60)
            return {"seconds": took}
        self.phase("mkfs", work)

    def trim(self):
        """What blkdiscard does: TRIM of the whole device in the largest steps that the kernel takes, then FLUSH."""
        def work():
            import nbd
            handle = nbd.NBD()
            handle.connect_uri(self.server.uri())
            size, step, begin = handle.get_size(), (4 << 30) - 65536, time.monotonic()
            for offset in range(0, size, step):
                handle.trim(min(step, size - offset), offset)
            handle.flush()
            took = time.monotonic() - begin
            handle.shutdown()
            return {"seconds": took, "trimmed": size}
        self.phase("trim", work)

    def reopen(self):
        """From the start of the server to its first answered READ, after it was killed under random writes."""
        for size in self.sizes.opened:
            begin = time.monotonic()
            job, _ = fio(self.server, 3600, rw="randwrite", bs="64k", iodepth=32, size=self.server.size, io_size=size,
                         norandommap=1, refill_buffers=0, buffer_compress_percentage=97, buffer_compress_chunk="64k")
            filled = time.monotonic() - begin
            self.server.kill()

            def work():
                import nbd
                begin = time.monotonic()
                self.server.run()
                handle = nbd.NBD()
                handle.connect_uri(self.server.uri())
                handle.pread(4096, 0)
                took = time.monotonic() - begin
                handle.shutdown()
                return {"seconds": took, "filled_s": filled}
            self.phase(f"open after {size // GIB} GiB", work)
