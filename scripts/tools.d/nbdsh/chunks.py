# Structured replies and BLOCK_STATUS, as libnbd sees them: a READ in chunks, with DF, from the buffer and from the store.
# Run by nbdsh with a connected handle `h`, on a volume whose first 64 MiB may be overwritten.

import nbd

MIB = 1 << 20
assert h.get_structured_replies_negotiated() and h.can_df() and h.can_fast_zero()

# The handle that was handed in asked for no context.
with_status = nbd.NBD()
with_status.add_meta_context("base:allocation")
with_status.connect_uri(h.get_uri())
assert with_status.can_meta_context("base:allocation")


def status(length, offset, flags=0):
    found = []
    with_status.block_status(length, offset, lambda name, start, extents, error: found.extend(extents) or 0, flags)
    return list(zip(found[::2], found[1::2]))


def chunks(length, offset, flags=0):
    found = []
    note = lambda data, start, kind, error: found.append((start, len(data), kind)) or 0
    return h.pread_structured(length, offset, note, flags), found


h.trim(64 * MIB, 0)
h.pwrite(b"x" * MIB, 8 * MIB)
h.zero(MIB, 16 * MIB, nbd.CMD_FLAG_NO_HOLE)
for turn in range(2):
    assert status(64 * MIB, 0) == [(8 * MIB, 3), (MIB, 0), (7 * MIB, 3), (MIB, 2), (47 * MIB, 3)], status(64 * MIB, 0)
    assert status(64 * MIB, 0, nbd.CMD_FLAG_REQ_ONE) == [(8 * MIB, 3)]
    assert status(5, 8 * MIB - 2) == [(2, 3), (3, 0)]
    data, found = chunks(32 * MIB, 0)
    assert found == [(0, 8 * MIB, nbd.READ_HOLE), (8 * MIB, MIB, nbd.READ_DATA), (9 * MIB, 23 * MIB, nbd.READ_HOLE)], found
    assert data == bytes(8 * MIB) + b"x" * MIB + bytes(23 * MIB)
    assert chunks(32 * MIB, 0, nbd.CMD_FLAG_DF) == (data, [(0, 32 * MIB, nbd.READ_DATA)])
    h.flush()

# Zeroing is fast wherever it lies.
for length, offset in [(MIB, 8 * MIB), (1, 8 * MIB), (123456, 7000001), (64 * MIB, 0)]:
    h.zero(length, offset, nbd.CMD_FLAG_FAST_ZERO)
assert status(64 * MIB, 0) == [(64 * MIB, 3)]
with_status.shutdown()
