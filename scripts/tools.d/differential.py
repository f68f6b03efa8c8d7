#!/usr/bin/env python3
"""The same requests, legal and illegal, to several NBD servers: how each answers, and where they differ.

    differential.py [--seed N] NAME=SOCKET/EXPORT…     each a disk of 16 MiB, whose content is lost
    differential.py --writes SOCKET/EXPORT…            the same legal writes to each, for a log to be replayed

Each step has a class, which says what is asked and not with which numbers: those come from the seed, and the classes and
their answers do not depend on it. A line is printed for each class: what all answer, or each server with its answer. Data
that is read is compared with what that server has acknowledged, so that "data" is right data. After an error the server is
asked for something good. Nothing but Python is needed. For the table in docs/protocol.md; what is expected is in
differential.expected.
"""

import argparse
import collections
import concurrent.futures
import random
import secrets
import socket
import struct

SIZE = 16 << 20
OPTIONS = {"EXPORT_NAME": 1, "ABORT": 2, "LIST": 3, "PEEK_EXPORT": 4, "STARTTLS": 5, "INFO": 6, "GO": 7, "STRUCTURED_REPLY": 8,
           "LIST_META_CONTEXT": 9, "SET_META_CONTEXT": 10}
REPLIES = {1: "ACK", 2: "SERVER", 3: "INFO", 4: "META_CONTEXT"}
REPLY_ERRORS = ["UNSUP", "POLICY", "INVALID", "PLATFORM", "TLS_REQD", "UNKNOWN", "SHUTDOWN", "BLOCK_SIZE_REQD", "TOO_BIG"]
REPLIES |= {0x80000001 + number: "ERR_" + name for number, name in enumerate(REPLY_ERRORS)}
COMMANDS = {"READ": 0, "WRITE": 1, "FLUSH": 3, "TRIM": 4, "CACHE": 5, "WRITE_ZEROES": 6, "BLOCK_STATUS": 7, "RESIZE": 8, "99": 99}
FLAGS = {"FUA": 1, "NO_HOLE": 2, "DF": 4, "REQ_ONE": 8, "FAST_ZERO": 16, "bit 9": 512}
OFFERS = ["HAS_FLAGS", "READ_ONLY", "FLUSH", "FUA", "ROTATIONAL", "TRIM", "WRITE_ZEROES", "DF", "MULTI_CONN", "RESIZE", "CACHE",
          "FAST_ZERO", "BLOCK_STATUS_PAYLOAD"]
ERRORS = {1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW", 95: "ENOTSUP", 108: "ESHUTDOWN"}
PATIENCE = 8  # seconds; a server that waits for bytes that it is not owed is given up after so many

Server = collections.namedtuple("Server", "path export")


class Closed(Exception):
    """The server ended the connection."""


def option(number, data=b"", length=None, magic=b"IHAVEOPT"):
    return struct.pack(">8sII", magic, number, len(data) if length is None else length) + data


def counted(text):
    return struct.pack(">I", len(text)) + text


def info(name, *asked):
    return counted(name) + struct.pack(f">H{len(asked)}H", len(asked), *asked)


def contexts(name, *queries):
    return counted(name) + struct.pack(">I", len(queries)) + b"".join(map(counted, queries))


class Connection:
    def __init__(self, server, flags=3):
        self.export = server.export
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(server.path)  # may wait for its turn
        self.socket.settimeout(PATIENCE)
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        self.greeting = self.take(2)
        self.send(struct.pack(">I", flags))

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # what it said before is still to be read

    def take(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                more = self.socket.recv(length - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                raise Closed
            data += more
        return bytes(data)

    def replies(self, number):
        """The replies to one option, up to that which ends them."""
        found = []
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", self.take(20))
            assert magic == 0x0003E889045565A9 and echoed == number, (hex(magic), echoed)
            found.append((kind, self.take(length)))
            if kind == 1 or kind >> 31:
                return found

    def ask(self, number, data=b""):
        self.send(option(number, data))
        return self.replies(number)

    def go(self):
        found = self.ask(7, info(self.export))
        assert found[-1][0] == 1, found
        self.flags = next(struct.unpack(">QH", data[2:12])[1] for kind, data in found if kind == 3 and data[:2] == b"\0\0")
        return self

    def reply(self, cookie, data_length):
        """An error's name, or the parts of the answer: (type, payload), simple data as type 1."""
        parts, failed = [], None
        while True:
            magic = struct.unpack(">I", self.take(4))[0]
            if magic == 0x67446698:
                error, echoed = struct.unpack(">IQ", self.take(12))
                assert echoed == cookie
                if error:
                    return ERRORS.get(error, str(error))
                return [(1, struct.pack(">Q", 0) + self.take(data_length))] if data_length else []
            assert magic == 0x668E33EF, hex(magic)
            flags, kind, echoed, length = struct.unpack(">HHQI", self.take(16))
            assert echoed == cookie
            payload = self.take(length)
            if kind >> 15:
                failed = failed or ERRORS.get(struct.unpack(">I", payload[:4])[0], "an error")
            parts.append((kind, payload))
            if flags & 1:
                return failed or parts


def summary(replies):
    """Runs of the same type as one; of INFO only that there is some."""
    kinds = [REPLIES.get(kind, hex(kind)) for kind, _ in replies]
    return " ".join(kind for number, kind in enumerate(kinds) if number == 0 or kinds[number - 1] != kind)


def guarded(work):
    try:
        return work()
    except Closed:
        return "closes"
    except TimeoutError:
        return "does not answer"
    except AssertionError as error:
        return f"breaks the protocol {error}"


# ---- the handshake

def good_go(connection):
    return guarded(lambda: summary(connection.ask(7, info(connection.export))))


def handshakes(chance):
    """Classes, and what to do on a connection of its own, each with an answer. Data may be a function of the export's name."""
    noise = chance.randbytes(10000)
    name, number = b"nobody-%d" % chance.randrange(1000), chance.randrange(100, 1 << 31)
    base = b"base:allocation"

    def made(data, export):
        return data(export) if callable(data) else data

    def single(number, data=b"", first=()):
        def talk(server):
            connection = Connection(server)
            for earlier in first:
                connection.ask(*earlier)
            return summary(connection.ask(number, made(data, server.export)))
        return talk

    def then_go(number, data):
        """The option, and whether a good GO is understood behind it."""
        def talk(server):
            connection = Connection(server)
            said = summary(connection.ask(number, made(data, server.export)))
            return said if number == 7 and said.endswith("ACK") else said + ", then GO: " + good_go(connection)
        return talk

    def raw(data, flags=3):
        def talk(server):
            connection = Connection(server, flags)
            connection.send(data)
            connection.take(1)
            return "answers"
        return talk

    def export_name(name, flags):
        def talk(server):
            connection = Connection(server, flags)
            connection.send(option(1, made(name, server.export)))
            size = struct.unpack(">Q", connection.take(10)[:8])[0]
            zeroes = 0 if flags & 2 else len(connection.take(124))
            return f"{size} bytes, {zeroes} zeroes"
        return talk

    def disk(export):
        return export

    def of_disk(*queries):
        return lambda export: contexts(export, *queries)

    structured = [(8,)]
    return {
        "handshake flags": lambda server: Connection(server).greeting.hex(),
        "unknown option of 10000 bytes": then_go(number, noise),
        "unknown option of nothing": then_go(number, b""),
        "PEEK_EXPORT": then_go(4, disk),
        "known option of 100000 bytes": then_go(7, info(b"x" * 99990)),
        "client flag that was not offered": raw(option(3), 1 << chance.randrange(2, 32) | 3),
        "option without its magic": raw(option(3, magic=b"IHAVEPOT")),
        "EXPORT_NAME": export_name(disk, 3),
        "EXPORT_NAME with zeroes": export_name(disk, 1),
        "EXPORT_NAME by a client without fixed newstyle": export_name(disk, 0),
        "EXPORT_NAME, unknown": export_name(name, 3),
        "EXPORT_NAME of the default": export_name(b"", 3),
        "ABORT": single(2),
        "ABORT with data": single(2, noise[:77]),
        "LIST": single(3),
        "LIST with data": then_go(3, noise[:7]),
        "STARTTLS": then_go(5, b""),
        "STARTTLS with data": then_go(5, noise[:5]),
        "INFO": then_go(6, lambda export: info(export)),
        "INFO, unknown": then_go(6, info(name)),
        "GO, unknown": then_go(7, info(name)),
        "GO of the default": single(7, info(b"")),
        "GO, information unknown": single(7, lambda export: info(export, 0x7777, 0x7777)),
        "INFO, name longer than the option": then_go(6, lambda export: struct.pack(">I", 99) + export + b"\0\0"),
        "INFO, count too large": then_go(6, lambda export: counted(export) + struct.pack(">HH", 2, 3)),
        "INFO, bytes behind the end": then_go(6, lambda export: info(export) + b"\0"),
        "INFO of nothing": then_go(6, b""),
        "INFO, name with NUL": then_go(6, lambda export: info(export + b"\0x")),
        "INFO, name not UTF-8": then_go(6, info(b"\xff\xfe")),
        "INFO, name of 4097 bytes": then_go(6, info(b"x" * 4097)),
        "STRUCTURED_REPLY": then_go(8, b""),
        "STRUCTURED_REPLY twice": single(8, first=structured),
        "STRUCTURED_REPLY with data": then_go(8, noise[:3]),
        "LIST_META_CONTEXT before structured replies": single(9, of_disk()),
        "LIST_META_CONTEXT of all": single(9, of_disk(), structured),
        "LIST_META_CONTEXT base:": single(9, of_disk(b"base:"), structured),
        "LIST_META_CONTEXT, other namespace": single(9, of_disk(b"x-%d:y" % number), structured),
        "LIST_META_CONTEXT, unknown export": single(9, contexts(name), structured),
        "LIST_META_CONTEXT, query longer than the option":
            single(9, lambda export: counted(export) + struct.pack(">II", 1, 99), structured),
        "SET_META_CONTEXT before structured replies": single(10, of_disk(base)),
        "SET_META_CONTEXT": single(10, of_disk(base), structured),
        "SET_META_CONTEXT of nothing": single(10, of_disk(), structured),
        "SET_META_CONTEXT base:": single(10, of_disk(b"base:"), structured),
        "SET_META_CONTEXT base:unknown": single(10, of_disk(b"base:unknown"), structured),
        "SET_META_CONTEXT, query without a colon": single(10, of_disk(b"allocation"), structured),
        "SET_META_CONTEXT, unknown export": single(10, contexts(name, base), structured),
        "SET_META_CONTEXT, bytes behind the end": single(10, lambda export: contexts(export, base) + b"\0", structured),
    }


# ---- transmission

Step = collections.namedtuple("Step", "kind command flags offset length payload")
GOOD = Step("", "READ", 0, 0, 512, b"")

# What can be wrong with a range, and the offset and the length that make it so.
RANGES = {
    ", no bytes": lambda offset, length, _: (offset, 0),
    ", no bytes at the end": lambda offset, length, _: (SIZE, 0),
    ", from the end on": lambda offset, length, _: (SIZE, length),
    ", past the end": lambda offset, length, _: (SIZE - 1, length + 1),
    ", around 2^64": lambda offset, length, chance: ((1 << 64) - chance.randrange(1, 5000), 5000 + length),
    ", longer than the export": lambda offset, length, _: (1, SIZE),
}
LARGE = {True: (", of 33 MiB", 33 << 20), False: (", of nearly 4 GiB", 0xFFFFFE00)}


def requests(chance):
    """Every class of request several times: each with one fault, in its range or in its flags, and legal ones between."""
    for _ in range(4):
        kinds = []
        for command in COMMANDS:
            kinds += [(command, "", (), None)] * 8
            kinds += [(command, "", (flag,), None) for flag in FLAGS]
            if command == "FLUSH":
                kinds += [(command, ", offset", (), lambda *_: (512, 0)), (command, ", length", (), lambda *_: (0, 512))]
            elif command not in ("RESIZE", "99"):
                kinds += [(command, where, (), made) for where, made in RANGES.items()]
                where, large = LARGE[command in ("READ", "WRITE")]
                kinds.append((command, where, (), lambda *_, large=large: (0, large)))
        chance.shuffle(kinds)
        for command, where, flags, made in kinds:
            yield request(chance, command, where, flags, made)


def request(chance, command, where, flags, made):
    length = chance.choice([1, 511, 512, 4096, 65536, chance.randrange(1, 300000)])
    offset = chance.randrange(0, SIZE - length)
    if command in ("FLUSH", "RESIZE", "99"):
        offset, length = 0, 0 if command == "FLUSH" else 4096
    if made:
        offset, length = made(offset, length, chance)
    payload = b""
    if command == "WRITE":
        payload = chance.randbytes(length) if length < 1 << 20 else bytes(length)
    kind = command + where + "".join(f", {flag}" for flag in flags)
    return Step(kind, command, sum(FLAGS[flag] for flag in flags), offset, length, payload)


class Session:
    """One server in its transmission phase, what it has acknowledged, and a new connection when it closes one."""

    def __init__(self, server, structured):
        self.server, self.structured = server, structured
        self.disk = bytearray(SIZE)
        self.cookie = 0
        self.connect()
        assert self.take(Step("", "WRITE_ZEROES", 0, 0, SIZE, b"")) == "done"

    def connect(self):
        self.connection = Connection(self.server)
        self.has_structured = self.structured and self.connection.ask(8)[-1][0] == 1
        self.has_context = False
        if self.has_structured:
            found = self.connection.ask(10, contexts(self.server.export, b"base:allocation"))
            self.has_context = any(kind == 4 for kind, _ in found)
        self.connection.go()

    def offers(self, bit):
        return bool(self.connection.flags >> bit & 1)

    def take(self, step):
        """The answer to one step; and if it is an error, whether the connection is good for more."""
        answer = self.ask(step)
        if answer in ERRORS.values() and self.ask(GOOD) != "data":
            answer += " and closes"
        return answer

    def ask(self, step):
        self.cookie += 1
        head = struct.pack(">IHHQQI", 0x25609513, step.flags, COMMANDS[step.command], self.cookie, step.offset, step.length)
        answer = guarded(lambda: self.answer(head, step))
        if answer in ("closes", "does not answer") or answer.startswith("breaks"):
            self.connect()
        return answer

    def answer(self, head, step):
        self.connection.send(head + step.payload)
        answer = self.connection.reply(self.cookie, step.length if step.command == "READ" else 0)
        if isinstance(answer, str):
            return answer
        if step.command == "READ":
            return self.judge_data(step, answer)
        if step.command == "BLOCK_STATUS":
            return self.judge_status(step, answer)
        assert not step.length or step.offset + step.length <= SIZE or step.command not in ("WRITE", "WRITE_ZEROES", "TRIM")
        end = step.offset + step.length
        if step.command == "WRITE":
            self.disk[step.offset:end] = step.payload
        elif step.command == "WRITE_ZEROES":
            self.disk[step.offset:end] = bytes(step.length)
        elif step.command == "TRIM" and step.length:
            # What is there now is the server's choice; the next step makes it one for all.
            zeroes = Step("", "WRITE_ZEROES", 0, step.offset, step.length, b"")
            assert self.ask(zeroes) == "done"
        return "done"

    def judge_data(self, step, parts):
        found, covered = bytearray(step.length), 0
        for kind, payload in parts:
            if kind == 1:
                at = struct.unpack(">Q", payload[:8])[0] - (step.offset if self.has_structured else 0)
                found[at:at + len(payload) - 8] = payload[8:]
                covered += len(payload) - 8
            elif kind == 2:
                covered += struct.unpack(">I", payload[8:])[0]
        right = covered == step.length and found == self.disk[step.offset:step.offset + step.length]
        return "data" if right else "wrong data"

    def judge_status(self, step, parts):
        payload = next(payload for kind, payload in parts if kind == 5)
        numbers = struct.unpack(f">{len(payload) // 4 - 1}I", payload[4:])
        lengths = numbers[::2]
        assert lengths and all(lengths) and sum(lengths[:-1]) < step.length
        at = step.offset
        for length, flags in zip(lengths, numbers[1::2]):
            end = min(at + length, step.offset + step.length)
            assert not flags & 2 or not any(self.disk[at:end]), "what is called zero is not"
            at += length
        return "descriptors"


def compare(servers, seed):
    """Prints what each class of step is answered with."""
    answers = collections.defaultdict(lambda: collections.defaultdict(set))
    talks = handshakes(random.Random(seed))
    # Side by side, because one server waits for ever at some.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = [(kind, name, pool.submit(guarded, lambda talk=talk, server=server: talk(server)))
                 for name, server in servers.items() for kind, talk in talks.items()]
    for kind, name, future in asked:
        answers[kind][name].add(future.result())
    for structured in (False, True):
        style = "structured: " if structured else ""
        sessions = {name: Session(server, structured) for name, server in servers.items()}
        for name, session in sessions.items():
            offered = [offer for bit, offer in enumerate(OFFERS) if session.offers(bit)]
            answers[style + "what is offered"][name].add(" ".join(offered))
        # A server without structured replies has said so above.
        sessions = {name: session for name, session in sessions.items() if session.has_structured == structured}
        for step in requests(random.Random(seed + structured)):
            for name, session in sessions.items():
                answers[style + step.kind][name].add(session.take(step))
    for kind in sorted(answers):
        said = {name: " or ".join(sorted(found)) for name, found in answers[kind].items()}
        if len(set(said.values())) == 1:
            said = {"all": next(iter(said.values()))}
        print(f"{kind}:", "; ".join(f"{name} {text}" for name, text in said.items()))


def write(server, seed):
    """Writes whole sectors, one after the other, and flushes."""
    session, chance = Session.__new__(Session), random.Random(seed)
    session.server, session.structured, session.disk, session.cookie = server, False, bytearray(SIZE), 0
    session.connect()
    for _ in range(300):
        length = 512 * chance.randrange(1, 200)
        offset = 512 * chance.randrange((SIZE - length) // 512)
        assert session.ask(Step("", "WRITE", 0, offset, length, chance.randbytes(length))) == "done"
    assert session.ask(Step("", "FLUSH", 0, 0, 0, b"")) == "done"
    session.connection.send(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))


def server(text):
    path, _, export = text.rpartition("/")
    return Server(path, export.encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--writes", action="store_true")
    parser.add_argument("servers", nargs="+")
    arguments = parser.parse_args()
    if arguments.writes:
        for text in arguments.servers:
            write(server(text), arguments.seed)
    else:
        named = dict(text.split("=", 1) for text in arguments.servers)
        compare({name: server(text) for name, text in named.items()}, arguments.seed)


if __name__ == "__main__":
    main()
