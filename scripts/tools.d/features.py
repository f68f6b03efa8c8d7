#!/usr/bin/env python3
"""What an NBD server can do and how it takes what is hard, as raw bytes on a Unix socket say: for the table in docs/protocol.md.

    features.py SOCKET EXPORT        one line for each feature; the export is writable, at least 8 GiB, and its content is lost

It needs nothing but Python, and speaks extended headers, which the clients of the distributions do not yet.
"""

import socket
import struct
import sys

OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED = 7, 8, 9, 10, 11
READ, WRITE, TRIM, ZEROES, STATUS = 0, 1, 4, 6, 7
ERRORS = {1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW", 95: "ENOTSUP", 108: "ESHUTDOWN"}
REPLIES = {1: "ACK", 0x80000001: "ERR_UNSUP", 0x80000002: "ERR_POLICY", 0x80000003: "ERR_INVALID", 0x80000006: "ERR_UNKNOWN"}


class Client:
    """One connection."""

    def __init__(self, path, export):
        self.export = export.encode()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        self.take(2)
        self.socket.sendall(struct.pack(">I", 3))
        self.extended = False

    def take(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise ConnectionError("the server closed")
            data += more
        return data

    def option(self, number, data=b""):
        """All replies to an option: type and data, up to the one that ends it."""
        self.socket.sendall(struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data)
        replies = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            replies.append((kind, self.take(length)))
            if kind == 1 or kind >> 31:
                return replies

    def counted(self, text):
        return struct.pack(">I", len(text)) + text

    def contexts(self, number, *queries):
        data = self.counted(self.export) + struct.pack(">I", len(queries))
        return self.option(number, data + b"".join(self.counted(query) for query in queries))

    def go(self):
        infos = self.option(OPT_GO, self.counted(self.export) + struct.pack(">H", 0))
        assert infos[-1][0] == 1, infos
        export = next(data for kind, data in infos if kind == 3 and data[:2] == b"\0\0")
        self.size, self.flags = struct.unpack(">QH", export[2:])
        return self

    def request(self, command, offset, length, flags=0, payload=b""):
        if self.extended:
            head = struct.pack(">IHHQQQ", 0x21E41C71, flags | (32 if payload else 0), command, 7, offset, length)
        else:
            head = struct.pack(">IHHQQI", 0x25609513, flags, command, 7, offset, length)
        self.socket.sendall(head + payload)
        return self.reply(length if command == READ else 0)

    def reply(self, simple_data):
        """An error by name, or the chunks; a simple reply has none."""
        chunks = []
        while True:
            magic = struct.unpack(">I", self.take(4))[0]
            if magic == 0x67446698:
                error, _ = struct.unpack(">IQ", self.take(12))
                if error:
                    return ERRORS.get(error, str(error))
                self.take(simple_data)
                return []
            if magic == 0x6E8A278C:
                flags, kind, _, _, length = struct.unpack(">HHQQQ", self.take(28))
            else:
                assert magic == 0x668E33EF, hex(magic)
                flags, kind, _, length = struct.unpack(">HHQI", self.take(16))
            chunks.append((kind, self.take(length)))
            if flags & 1:
                errors = [data for kind, data in chunks if kind >> 15]
                if errors:
                    error = struct.unpack(">I", errors[0][:4])[0]
                    return ERRORS.get(error, str(error))
                return chunks


def said(result):
    return result if isinstance(result, str) else "yes"


def tried(work):
    try:
        return work()
    except (ConnectionError, socket.timeout) as error:
        return f"closes ({error})" if isinstance(error, ConnectionError) else "does not answer"


def main(path, export):
    def client(*options):
        made = Client(path, export)
        for option in options:
            kind = made.option(option)[-1][0]
            if kind != 1:
                return None, REPLIES.get(kind, hex(kind))
            made.extended = option == OPT_EXTENDED
        return made, None

    def with_contexts(style=OPT_STRUCTURED):
        made, _ = client(style)
        made.contexts(OPT_SET_META, b"base:allocation")
        return made.go()

    plain, _ = client()
    plain.go()
    structured, why = client(OPT_STRUCTURED)
    print("structured replies:", why or "yes")
    flags = structured.go().flags if structured else plain.flags
    for bit, name in [(7, "DF"), (8, "MULTI_CONN"), (10, "CACHE"), (11, "FAST_ZERO")]:
        print(f"{name}:", "yes" if flags >> bit & 1 else "no")
    if structured:
        asker, _ = client(OPT_STRUCTURED)
        names = [data[4:].decode() for kind, data in asker.contexts(OPT_LIST_META) if kind == 4]
        print("contexts:", ", ".join(names) or "none")
        structured.request(TRIM, 0, 64 << 20)
        structured.request(WRITE, 1 << 20, 1 << 20, payload=b"x" * (1 << 20))
        chunks = structured.request(READ, 0, 3 << 20)
        sent = sum(len(data) - 8 for kind, data in chunks if kind == 1)
        print("bytes sent for a READ of 3 MiB of which 1 is data:", sent)
    print("unknown option of 10000 bytes:", tried(lambda: REPLIES[client()[0].option(999, b"I" * 10000)[-1][0]]))
    print("TRIM of 2^32 - 512:", tried(lambda: said(plain.request(TRIM, 0, (1 << 32) - 512))))
    print("WRITE_ZEROES of 2^32 - 512:", tried(lambda: said(plain.request(ZEROES, 0, (1 << 32) - 512))))
    print("unknown command:", tried(lambda: said(plain.request(99, 0, 4096))))
    print("unknown flag:", tried(lambda: said(plain.request(TRIM, 0, 4096, flags=1 << 9))))
    print("DF without structured replies:", tried(lambda: said(plain.request(READ, 0, 4096, flags=4))))
    if structured and names:
        def status(length, flags=0):
            chunks = with_contexts().request(STATUS, 0, length, flags)
            return chunks if isinstance(chunks, str) else (len(chunks[0][1]) - 4) // 8
        print("BLOCK_STATUS of 2^32 - 512:", tried(lambda: f"{status((1 << 32) - 512)} descriptors"))
        print("BLOCK_STATUS of nothing:", tried(lambda: status(0)))
        print("BLOCK_STATUS without a context:", tried(lambda: said(structured.request(STATUS, 0, 4096))))
        def cleared():
            made, _ = client(OPT_STRUCTURED)
            made.contexts(OPT_SET_META, b"base:allocation")
            made.contexts(OPT_SET_META)
            return said(made.go().request(STATUS, 0, 4096))
        print("BLOCK_STATUS after the selection was cleared:", tried(cleared))
    extended, why = client(OPT_EXTENDED)
    print("extended headers:", why or "yes")
    if extended:
        extended.go()
        print("TRIM of the whole export:", tried(lambda: said(extended.request(TRIM, 0, extended.size))))
        chunks = tried(lambda: with_contexts(OPT_EXTENDED).request(STATUS, 0, extended.size))
        count = chunks if isinstance(chunks, str) else struct.unpack(">I", chunks[0][1][4:8])[0]
        print("BLOCK_STATUS of the whole export, descriptors:", count)


if __name__ == "__main__":
    main(*sys.argv[1:])
