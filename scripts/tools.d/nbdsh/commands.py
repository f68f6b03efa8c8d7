# FLUSH, FUA, TRIM, WRITE_ZEROES with and without NO_HOLE, CACHE: each does what it says, at aligned and odd places.
# Run by nbdsh with a connected handle `h`, on a volume whose first 8 MiB may be overwritten.

import nbd
import os

assert not h.is_read_only()
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero()

AREA = 8 << 20
expected = bytearray(os.urandom(AREA))
h.pwrite(bytes(expected), 0, nbd.CMD_FLAG_FUA)
h.flush()


def compare(words):
    assert h.pread(AREA, 0) == expected, words


# WRITE_ZEROES zeroes exactly what it names.
for offset, length in [(0, 4096), (4096, 65536), (100001, 1), (131071, 4098), (1 << 20, 2 << 20), (5000001, 1234567)]:
    for flags in [0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA]:
        data = os.urandom(length)
        h.pwrite(data, offset)
        expected[offset:offset + length] = data
        compare(f"before zeroing {length} at {offset}")
        h.zero(length, offset, flags)
        expected[offset:offset + length] = bytes(length)
        compare(f"zero of {length} at {offset}, flags {flags}")

# TRIM may leave what it names or make it zero, block by block; what lies beside it stays.
h.pwrite(bytes(expected), 0)
for offset, length in [(1 << 20, 1 << 20), (3000001, 100003), (4097, 4094)]:
    data = os.urandom(length)
    h.pwrite(data, offset)
    expected[offset:offset + length] = data
    h.trim(length, offset, nbd.CMD_FLAG_FUA)
    now = h.pread(length, offset)
    for start in range(0, length, 512):
        part = now[start:start + 512]
        for byte, old in zip(part, data[start:start + 512]):
            assert byte in (0, old), f"trim of {length} at {offset}: byte {start} on is neither old nor zero"
    expected[offset:offset + length] = now
    compare(f"beside the trim of {length} at {offset}")

# Data written over zeros and holes.
h.zero(AREA, 0)
h.trim(AREA, 0)
expected = bytearray(os.urandom(AREA))
h.pwrite(bytes(expected), 0)
compare("written again")

if h.can_cache():
    h.cache(AREA, 0)
    compare("after cache")
h.flush()
compare("after flush")

# The largest requests that every server should take, and the longest that carry no data.
big = os.urandom(32 << 20)
h.pwrite(big, 0)
assert h.pread(len(big), 0) == big, "32 MiB in one request"
size = h.get_size()
h.zero(min(size, (1 << 32) - 4096), 0)
assert h.pread(1 << 20, 0) == bytes(1 << 20)
h.trim(min(size, (1 << 32) - 4096), 0)
