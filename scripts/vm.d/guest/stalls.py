"""How long programs had to wait around events.

Usage: stalls.py run DEVICE LOG STOP     a load on a device, past the page cache: reads, writes, and writes with fdatasync. Each
                                         request that takes longer than 10 ms is noted in LOG. An error ends it
       stalls.py table LOG MARKS         for each kind of event in MARKS, how often it was, and how long the longest request took that was
                                         under way in the time of each: the median and the longest
       stalls.py over OUTAGES LOG…      how long the server was away at a time, and how much longer the longest request took that was under way
       stalls.py times ROUNDS WHAT COMMAND…  how long the command took to end, so often
       stalls.py grown DEVICE BYTES      waits until the device is so large, and prints the time of the day
       stalls.py attach ROUNDS COMMAND…  how long the command took to print a line, so often, and how long to end after SIGTERM
"""

import mmap
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

BLOCK = 4096
AREA = 64 << 20


def load(device, log, stop):
    errors = []
    with open(log, "a", buffering=1) as noted:
        threads = [threading.Thread(target=work, args=(device, kind, noted, stop, errors)) for kind in ("read", "write", "sync", "write")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        sys.exit("\n".join(errors))


def work(device, kind, noted, stop, errors):
    memory = mmap.mmap(-1, BLOCK)   # aligned, as O_DIRECT wants it
    memory[:] = os.urandom(BLOCK)
    try:
        disk = os.open(device, os.O_RDWR | os.O_DIRECT)
        while not os.path.exists(stop):
            at, begun = random.randrange(AREA // BLOCK) * BLOCK, time.time()
            if kind == "read":
                os.preadv(disk, [memory], at)
            else:
                os.pwrite(disk, memory, at)
            if kind == "sync":
                os.fdatasync(disk)
            ended = time.time()
            if ended - begun > 0.01:
                noted.write(f"{begun} {ended}\n")
    except OSError as error:
        errors.append(f"{kind}: {error}")


def table(log, marks):
    with open(log) as lines:
        requests = [tuple(map(float, line.split())) for line in lines]
    stalls = {}
    with open(marks) as lines:
        for line in lines:
            begun, ended, *kind = line.split()
            under_way = (end - begin for begin, end in requests if begin < float(ended) and end > float(begun))
            stalls.setdefault(" ".join(kind), []).append(max(under_way, default=0.01))
    for kind, found in stalls.items():
        print(f"== {kind}: {len(found)} times; the longest request {statistics.median(found):.2f} s (median), {max(found):.2f} s (at most)")


def over(outages, logs):
    away, extra = [], []
    requests = [tuple(map(float, line.split())) for log in logs for line in open(log)]
    for line in open(outages):
        begun, ended = map(float, line.split())
        away.append(ended - begun)
        extra.append(max((end - max(begin, begun) - (ended - begun) for begin, end in requests if begin < ended and end > begun), default=0.0))
    print(f"== {len(away)} times without a server, for {statistics.median(away):.2f} s (median), {max(away):.2f} s (at most); "
          f"beyond that, the longest request took {statistics.median(extra):.2f} s (median), {max(extra):.2f} s (at most)")


def attach(rounds, command):
    came, left = [], []
    for _ in range(rounds):
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if not process.stdout.readline():
            sys.exit("it did not attach")
        came.append(time.monotonic() - begun)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if process.wait():
            sys.exit("it did not end well")
        left.append(time.monotonic() - begun)
    say("attach", came)
    say("detach", left)


def grown(device, size):
    with open(f"/sys/block/{os.path.basename(device)}/size") as sectors:
        while int(sectors.read()) * 512 != size:
            time.sleep(0.01)
            sectors.seek(0)
    print(time.time())


def times(rounds, what, command):
    took = []
    for _ in range(rounds):
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took.append(time.monotonic() - begun)
    say(what, took)


def say(what, took):
    print(f"== {what}: {len(took)} times; {1000 * statistics.median(took):.0f} ms (median), {1000 * max(took):.0f} ms (at most)")


def main(what, *arguments):
    if what == "attach":
        attach(int(arguments[0]), arguments[1:])
    elif what == "grown":
        grown(arguments[0], int(arguments[1]))
    elif what == "over":
        over(arguments[0], arguments[1:])
    elif what == "times":
        times(int(arguments[0]), arguments[1], arguments[2:])
    else:
        {"run": load, "table": table}[what](*arguments)


main(*sys.argv[1:])
