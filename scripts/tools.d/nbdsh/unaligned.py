# Writes of any alignment down to one byte, across block and frame borders, change exactly their bytes.
# Run by nbdsh with a connected handle `h`, on a volume whose first MiB may be overwritten.

import os

AREA = 1 << 20
expected = bytearray(os.urandom(AREA))
h.pwrite(bytes(expected), 0)

offsets = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 131071, 300001]
lengths = [1, 2, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 131073]
for offset in offsets:
    for length in lengths:
        data = os.urandom(length)
        h.pwrite(data, offset)
        expected[offset:offset + length] = data
        assert h.pread(length, offset) == data, f"write of {length} at {offset}"
        before = max(0, offset - 1)
        assert h.pread(1, before) == expected[before:before + 1], f"byte before {offset}"
        assert h.pread(1, offset + length) == expected[offset + length:offset + length + 1], f"byte after {offset + length}"
assert h.pread(AREA, 0) == expected, "the whole area"
h.flush()
assert h.pread(AREA, 0) == expected, "the whole area after a flush"

# The last byte of the volume.
end = h.get_size()
h.pwrite(b"z", end - 1)
assert h.pread(1, end - 1) == b"z"
h.trim(4096, end - 4096)
