"""A crowd that stalls in the handshake, and a client that is attached: for scripts/crowd.

Usage: crowd.py held|storm PORT PID COUNT

held: COUNT connections stop at every place of the handshake and stay. storm: a process connects for as long as the measurement lasts,
COUNT connections at a time, which a server with fewer places turns away.
"""

import multiprocessing
import random
import socket
import statistics
import struct
import sys
import time

OPERATIONS = 4000
OPTION_BYTES = 64 << 10  # nbd.max_option_bytes, its default
EACH = 32 << 10  # what a connection may take beside: its task, and what is read at a time (docs/memory.md)
PLACES = 256  # nbd.max_connections, its default
READ, WRITE = 0, 1


def option(number, length, data=b""):
    return struct.pack(">8sII", b"IHAVEOPT", number, length) + data


# What each says, and then nothing: nothing; half the flags; half an option's head; nearly all of a long option; the beginning of an
# option of 4 GiB.
STALLS = [
    b"",
    b"\0\0",
    b"\0\0\0\3" + option(7, 7)[:11],
    b"\0\0\0\3" + option(7, OPTION_BYTES, b"a" * (OPTION_BYTES - 1)),
    b"\0\0\0\3" + option(99, 0xFFFFFFFF, b"a" * 1000),
]


def stall(port, number):
    stream = socket.create_connection(("127.0.0.1", port), timeout=60)
    stream.sendall(STALLS[number % len(STALLS)])
    return stream


def hold(port, count, ready, over):
    crowd = [stall(port, number) for number in range(count)]
    ready.set()
    over.wait()
    del crowd


def storm(port, count, ready, over):
    turned_away = 0
    while not over.is_set():
        crowd = []
        for number in range(count):
            try:
                crowd.append(stall(port, number))
            except OSError:
                turned_away += 1
            if over.is_set():
                break
            if number == PLACES:
                ready.set()


class Attached:
    """A client in its transmission phase."""

    def __init__(self, port):
        self.stream = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self.take(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.stream.sendall(struct.pack(">I", 3) + option(1, 5, b"disk0"))
        self.size, _ = struct.unpack(">QH", self.take(10))

    def take(self, length):
        data = b""
        while len(data) < length:
            more = self.stream.recv(length - len(data))
            assert more, "the server closed"
            data += more
        return data

    def request(self, command, offset, payload=b""):
        self.stream.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, 4096) + payload)
        assert struct.unpack(">IIQ", self.take(16)) == (0x67446698, 0, 7)
        return self.take(4096) if command == READ else b""

    def latencies(self):
        """Microseconds of each of many requests: a write, and a read that must give it back."""
        chance, taken = random.Random(1), []
        for _ in range(OPERATIONS // 2):
            offset, payload = 4096 * chance.randrange(self.size // 4096), chance.randbytes(4096)
            start = time.perf_counter()
            self.request(WRITE, offset, payload)
            middle = time.perf_counter()
            assert self.request(READ, offset) == payload
            taken += [1e6 * (middle - start), 1e6 * (time.perf_counter() - middle)]
        return sorted(taken)


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def sockets(pid, port):
    """Connections that the kernel has with that port at their near end, accepted or not."""
    with open("/proc/net/tcp") as table:
        return sum(1 for line in table if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01")


def line(words, connections, memory, taken):
    median, worst = statistics.median(taken), taken[len(taken) * 99 // 100]
    print(f"{words:<28} {connections:>7} {memory / (1 << 20):>9.1f} {median:>9.0f} {worst:>9.0f}", flush=True)
    return median


def main():
    kind, port, pid, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    client = Attached(port)
    client.latencies()  # warms up
    print(f"{'':<28} {'held':>7} {'RSS, MiB':>9} {'p50, us':>9} {'p99, us':>9}")
    alone, before = client.latencies(), resident(pid)
    median = line(f"{kind}: alone", sockets(pid, port), before, alone)
    ready, over = multiprocessing.Event(), multiprocessing.Event()
    crowd = multiprocessing.Process(target={"held": hold, "storm": storm}[kind], args=(port, count, ready, over), daemon=True)
    crowd.start()
    while not ready.wait(1):
        assert crowd.is_alive(), "the crowd did not get there"
    held, taken, memory = sockets(pid, port), client.latencies(), resident(pid)
    crowded = line(f"{kind}: with the crowd", held, memory, taken)
    over.set()
    crowd.join(60)
    line(f"{kind}: after it", sockets(pid, port), resident(pid), client.latencies())
    places = min(count, PLACES) if kind == "storm" else count
    bound = places * (OPTION_BYTES + EACH)
    grown = memory - before
    print(f"{kind}: {crowded / median:.2f} times the median; {max(0, grown) // places} bytes of memory for each place", flush=True)
    if grown > bound:
        sys.exit(f"{grown} bytes more than without, and {bound} are what {places} connections may hold")
    if crowded > 2 * median:
        sys.exit(f"the median is {crowded / median:.2f} times what it was")


if __name__ == "__main__":
    main()
