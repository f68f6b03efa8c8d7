"""A client over vsock, on the machine of its server: writes, reads and compares on port 10809, and is turned away from 10810."""

import random
import socket
import struct

LOCAL, SIZE = 1, 64 << 20
READ, WRITE, DISC, FLUSH = 0, 1, 2, 3


def connect(port):
    stream = socket.socket(socket.AF_VSOCK)
    stream.settimeout(120)
    stream.connect((LOCAL, port))
    return stream


def take(stream, length):
    data = bytearray()
    while len(data) < length:
        more = stream.recv(length - len(data))
        assert more, "the server closed"
        data += more
    return bytes(data)


def go(stream, name):
    assert take(stream, 18) == b"NBDMAGICIHAVEOPT\0\3"
    data = struct.pack(">I", len(name)) + name + b"\0\0"
    stream.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 7, len(data)) + data)
    size = None
    while True:
        _, _, kind, length = struct.unpack(">QIII", take(stream, 20))
        data = take(stream, length)
        if kind == 1:
            return size
        assert kind == 3, hex(kind)
        if data[:2] == b"\0\0":
            size = struct.unpack(">Q", data[2:10])[0]


def request(stream, command, offset=0, length=0, payload=b""):
    stream.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length) + payload)
    if command == DISC:
        return b""
    assert struct.unpack(">IIQ", take(stream, 16)) == (0x67446698, 0, 7)
    return take(stream, length if command == READ else 0)


def main():
    chance, disk = random.Random(1), bytearray(SIZE)
    streams = [connect(10809), connect(10809)]
    for stream in streams:
        assert go(stream, b"disk0") == SIZE
    for turn in range(100):
        length = chance.choice([512, 4096, 100_001, 4 << 20])
        offset = chance.randrange(SIZE - length)
        payload = chance.randbytes(length)
        disk[offset:offset + length] = payload
        request(streams[turn % 2], WRITE, offset, length, payload)
        assert request(streams[(turn + 1) % 2], READ, offset, length) == payload
    request(streams[0], FLUSH)
    for offset in range(0, SIZE, 16 << 20):
        assert request(streams[1], READ, offset, 16 << 20) == disk[offset:offset + (16 << 20)]
    for stream in streams:
        request(stream, DISC)
        assert stream.recv(1) == b"", "it closes after DISC"
    try:
        assert connect(10810).recv(1) == b"", "only machine 77 is let in"
    except ConnectionResetError:
        pass  # as good an end
    print("100 writes over two connections are there")


if __name__ == "__main__":
    main()
