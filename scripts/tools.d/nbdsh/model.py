# A few thousand random commands, compared with the dumbest model: a bytearray.
# Run by nbdsh with a connected handle `h`, on a volume whose first 16 MiB may be overwritten. $SEED repeats a run.

import os
import random
import time

seed = os.environ.get("SEED") or str(time.time_ns())
print("SEED=" + seed)
choose = random.Random(seed)
AREA = 16 << 20
h.zero(AREA, 0)
model = bytearray(AREA)


def place():
    length = choose.choice([1, 512, 4096, 4096, 16384, choose.randrange(1, 8192), choose.randrange(1, 1 << 20)])
    offset = choose.randrange(AREA - length + 1)
    if choose.random() < 0.5:
        offset -= offset % 4096
    return offset, length


def compare(offset, length, words):
    assert h.pread(length, offset) == model[offset:offset + length], f"{words}: {length} at {offset}"


for turn in range(3000):
    offset, length = place()
    what = choose.choices(["write", "zeros", "zero", "trim", "flush", "read", "all"], [40, 3, 10, 10, 3, 40, 0.3])[0]
    if what == "write":
        data = choose.randbytes(length)
        h.pwrite(data, offset)
        model[offset:offset + length] = data
    elif what == "zeros":
        h.pwrite(bytes(length), offset)
        model[offset:offset + length] = bytes(length)
    elif what == "zero":
        h.zero(length, offset)
        model[offset:offset + length] = bytes(length)
    elif what == "trim":
        # What a trim leaves is not defined, so zero it afterwards; that must not harm its neighbours.
        h.trim(length, offset)
        h.zero(length, offset)
        model[offset:offset + length] = bytes(length)
    elif what == "flush":
        h.flush()
    elif what == "read":
        compare(offset, length, f"turn {turn}")
    else:
        compare(0, AREA, f"turn {turn}")
compare(0, AREA, "at the end")
