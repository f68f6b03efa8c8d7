# Hundreds of requests under way at once, on one connection and on several: every reply belongs to its request, and a write
# that was answered is seen by every later read, whatever connection it comes from.
# Run by nbdsh with a connected handle `h`, on a volume whose first 64 MiB may be overwritten.

import nbd
import os
import random

choose = random.Random(1)
PIECE = 16384
PIECES = 2048
IN_FLIGHT = 64


def drain(handle, limit):
    while handle.aio_in_flight() > limit:
        handle.poll(-1)


def fail_if(errors):
    assert not errors, errors


def write_all(handle, contents, order):
    errors = []
    for index in order:
        def done(error, index=index):
            if error.value:
                errors.append((index, error.value))
            return 1
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(contents[index])), index * PIECE, done)
        drain(handle, IN_FLIGHT - 1)
    drain(handle, 0)
    fail_if(errors)


def read_all(handle, contents, order):
    wrong = []
    for index in order:
        buffer = nbd.Buffer(PIECE)

        def done(error, index=index, buffer=buffer):
            if error.value or buffer.to_bytearray() != contents[index]:
                wrong.append(index)
            return 1
        handle.aio_pread(buffer, index * PIECE, done)
        drain(handle, IN_FLIGHT - 1)
    drain(handle, 0)
    fail_if(wrong)


contents = [os.urandom(PIECE) for _ in range(PIECES)]
order = list(range(PIECES))
choose.shuffle(order)
write_all(h, contents, order)
choose.shuffle(order)
read_all(h, contents, order)

assert h.can_multi_conn()
others = []
for _ in range(3):
    other = nbd.NBD()
    other.connect_uri(h.get_uri())
    others.append(other)
for other in others:
    choose.shuffle(order)
    read_all(other, contents, order)

# Each connection in turn changes a piece; all others see it at once, without a flush.
for turn in range(200):
    writer = choose.choice(others + [h])
    index = choose.randrange(PIECES)
    contents[index] = os.urandom(PIECE)
    writer.pwrite(contents[index], index * PIECE)
    for reader in others + [h]:
        assert reader.pread(PIECE, index * PIECE) == contents[index], f"turn {turn}"

# Flushes among the writes, all under way together.
errors = []


def answered(error):
    if error.value:
        errors.append(error.value)
    return 1


for index in range(256):
    contents[index] = os.urandom(PIECE)
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(contents[index])), index * PIECE, answered)
    if index % 16 == 0:
        h.aio_flush(answered)
drain(h, 0)
fail_if(errors)
read_all(h, contents, range(256))
for other in others:
    other.shutdown()
