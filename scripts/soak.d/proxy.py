"""A proxy on the loopback between a client of S3 and a server, that misbehaves on command.

Usage: proxy.py UPSTREAM-PORT PORT SEED

Each line of standard input is a command, a JSON object; its answer is one line: how often each fault was done so far, and
how many requests are held. The proxy ends with its input.

  {"faults": {FAULT: SHARE, …}}   from now on, of each request such a share is treated so (the others pass)
  {"mode": "pass"}                the usual
  {"mode": "refuse"}              connections are refused, and those that are open are reset
  {"mode": "hang"}                connections are accepted, and nothing is answered; what was asked meanwhile is forgotten
  {"mode": "hold"}                PUTs and DELETEs are held; in the next mode they go on to the server, however long it was

The faults:
  error           500, before the server sees the request
  error_after     500, after the server did what was asked
  unavailable     503, before
  slow_down       503 SlowDown, before
  cut_request     half of the request's body goes on, then both connections end
  cut_response    half of the answer, then the connection ends
  flip            one bit of what a GET of an object returns is another
  late_request    goes on to the server after `PATIENT_SECONDS`; nobody hears the answer
  late_response   goes on at once, and the answer comes after `PATIENT_SECONDS`

Bodies are read whole before they go on; both sides speak HTTP/1.1.
"""

import asyncio
import collections
import json
import random
import re
import sys

# Longer than the client waits (s3.py sets its stall_timeout to less).
PATIENT_SECONDS = 4
REASONS = {500: b"Internal Server Error", 503: b"Service Unavailable"}
ERRORS = {"error": (500, "InternalError"), "error_after": (500, "InternalError"),
          "unavailable": (503, "ServiceUnavailable"), "slow_down": (503, "SlowDown")}


class Message:
    """The head and the body of a request or an answer."""

    def __init__(self, head, body):
        self.head, self.body = head, body
        self.method, self.target = head.split(b" ", 2)[:2]

    @property
    def whole(self):
        return self.head + self.body

    @property
    def of_an_object(self):
        """Not a listing: its bytes are proven by whoever reads them."""
        return self.method == b"GET" and b"?" not in self.target


def field(head, name):
    match = re.search(rb"(?i)\r\n" + name + rb": *([^\r]*)", head)
    return match[1] if match else None


async def message(reader, without_body=False):
    head = await reader.readuntil(b"\r\n\r\n")
    if without_body or head.split(b" ", 2)[1] in (b"204", b"304"):
        return Message(head, b"")
    if (field(head, b"transfer-encoding") or b"").lower() == b"chunked":
        return Message(head, await chunks(reader))
    return Message(head, await reader.readexactly(int(field(head, b"content-length") or 0)))


async def chunks(reader):
    """As they came, with their lengths."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        length = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(length + 2)
        if not length:
            return body


class Proxy:
    def __init__(self, upstream, port, seed):
        self.upstream, self.port, self.choose = upstream, port, random.Random(seed)
        self.faults, self.mode, self.server = {}, "pass", None
        self.counts, self.held = collections.Counter(), 0
        self.changed = asyncio.Event()
        self.clients, self.tasks = set(), set()

    # Commands.

    async def obey(self, command):
        self.faults = command.get("faults", self.faults)
        if "mode" in command:
            await self.enter(command["mode"])
        return {"counts": self.counts, "held": self.held}

    async def enter(self, mode):
        self.mode = mode
        self.changed.set()
        self.changed = asyncio.Event()
        if mode == "refuse":
            if self.server:
                self.server.close()
                self.server = None
            for writer in list(self.clients):
                writer.transport.abort()
        elif self.server is None:
            self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, limit=1 << 20, reuse_address=True)

    # Requests.

    def draw(self, request):
        at = self.choose.random()
        for fault, share in self.faults.items():
            at -= share
            if at < 0:
                break
        else:
            return None
        if fault == "flip" and not request.of_an_object or fault == "cut_request" and not request.body:
            return None
        self.counts[fault] += 1
        return fault

    async def serve(self, reader, writer):
        self.clients.add(writer)
        try:
            while True:
                await self.answer(await message(reader), writer)
        except (asyncio.IncompleteReadError, ConnectionError, OSError, EndOfConnection):
            pass
        finally:
            self.clients.discard(writer)
            writer.close()

    async def answer(self, request, writer):
        if self.mode == "hang":
            self.counts["hang"] += 1
            await self.changed.wait()
            raise EndOfConnection
        if self.mode == "hold" and request.method in (b"PUT", b"DELETE", b"POST"):
            self.counts["hold"] += 1
            self.spawn(self.hold(request))
            await self.changed.wait()
            raise EndOfConnection
        fault = self.draw(request)
        if fault == "late_request":
            self.spawn(self.later(request))
            await asyncio.sleep(PATIENT_SECONDS)
            raise EndOfConnection
        if fault == "cut_request":
            await self.cut(request)
            raise EndOfConnection
        if fault in ERRORS and fault != "error_after":
            return await reply(writer, *ERRORS[fault])
        # A client that gives up meanwhile ends neither the request nor its effect.
        response = await asyncio.shield(self.spawn(self.ask(request)))
        if fault == "late_response":
            await asyncio.sleep(PATIENT_SECONDS)
        if fault == "error_after":
            return await reply(writer, *ERRORS[fault])
        if fault == "cut_response":
            writer.write(response.whole[:len(response.head) + len(response.body) // 2 if response.body else len(response.head) // 2])
            await writer.drain()
            raise EndOfConnection
        if fault == "flip" and response.body:
            at = self.choose.randrange(len(response.body) * 8)
            body = bytearray(response.body)
            body[at // 8] ^= 1 << at % 8
            response.body = bytes(body)
        writer.write(response.whole)
        await writer.drain()

    def spawn(self, work):
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.over)
        return task

    def over(self, task):
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()   # of whom nobody waits for it is no news

    async def hold(self, request):
        self.held += 1
        await self.changed.wait()
        try:
            await self.ask(request)
        finally:
            self.held -= 1

    async def later(self, request):
        await asyncio.sleep(PATIENT_SECONDS)
        await self.ask(request)

    async def ask(self, request):
        """A connection for each request, so that none is there that the server may have given up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 20)
        try:
            writer.write(request.whole)
            await writer.drain()
            return await message(reader, without_body=request.method == b"HEAD")
        finally:
            writer.close()

    async def cut(self, request):
        _, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(request.head + request.body[:len(request.body) // 2])
        await writer.drain()
        writer.close()


class EndOfConnection(Exception):
    """The client's connection ends here."""


async def reply(writer, status, code):
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>'.encode()
    writer.write(b"HTTP/1.1 %d %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
                 % (status, REASONS[status], len(body)) + body)
    await writer.drain()


async def main():
    proxy = Proxy(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    await proxy.enter("pass")
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(await proxy.obey(json.loads(line))), flush=True)


asyncio.run(main())
