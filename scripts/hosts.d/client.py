"""A client on a host of its own: attaches a volume, writes a block, says "attached", and then

  once   leaves;
  idle   does nothing until a line comes in; then it reads the block, says "read", and so on;
  busy   reads for ever.
"""

import sys

import nbd

uri, manner = sys.argv[1:]
disk = nbd.NBD()
try:
    disk.connect_uri(uri)
except nbd.Error as error:
    sys.exit(f"refused: {error}")
disk.pwrite(b"x" * 4096, 0)
disk.flush()
print("attached", flush=True)
if manner == "once":
    disk.shutdown()
    sys.exit()
while manner == "busy":
    disk.pread(1 << 20, 0)
for _ in sys.stdin:
    assert disk.pread(4096, 0) == b"x" * 4096
    print("read", flush=True)
