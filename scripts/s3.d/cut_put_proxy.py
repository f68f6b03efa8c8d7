"""A proxy on the loopback that breaks PUTs off: half of the body goes through, then both connections are closed.

usage: cut_put_proxy.py UPSTREAM-PORT PORT COUNT PATTERN

The first COUNT PUTs whose path matches PATTERN (a regular expression) and whose body is longer than 64 bytes are broken
off, each path once. One line is printed for each. COUNT 0 passes everything.
"""

import asyncio
import re
import sys


class Proxy:
    def __init__(self, upstream: int, count: int, pattern: str):
        self.upstream, self.left, self.pattern = upstream, count, re.compile(pattern.encode())
        self.broken: set[bytes] = set()

    def breaks(self, line: bytes, length: int) -> bool:
        path = line.split(b" ")[1]
        if self.left == 0 or length <= 64 or not line.startswith(b"PUT ") or path in self.broken:
            return False
        if not self.pattern.search(path):
            return False
        self.left -= 1
        self.broken.add(path)
        print("broke off", line.split(b" HTTP")[0].decode(), length, flush=True)
        return True

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        store, request = await asyncio.open_connection("127.0.0.1", self.upstream)
        back = asyncio.create_task(copy(store, answer))
        try:
            while True:
                head = await client.readuntil(b"\r\n\r\n")
                match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                length = int(match[1]) if match else 0
                request.write(head)
                if self.breaks(head.split(b"\r\n")[0], length):
                    request.write(await client.readexactly(length // 2))
                    await request.drain()
                    return
                while length:
                    piece = await client.read(min(length, 65536))
                    if not piece:
                        return
                    length -= len(piece)
                    request.write(piece)
                    await request.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for writer in (request, answer):
                writer.close()
            back.cancel()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def main() -> None:
    upstream, port, count, pattern = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    proxy = Proxy(upstream, count, pattern)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=1 << 20)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
