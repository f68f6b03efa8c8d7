#!/usr/bin/env bash
# nbd-server answers NBD_OPT_INFO with a size of 0, and NBD_OPT_GO for the same export with the true one.
#
# Software: Debian 12's nbd-server 1:3.24-1.1, unpacked from its package, and Python's own socket. No ashlar.
# Behaviour: a client that asks with INFO, to learn of an export without attaching it, is told 0 bytes and the usual flags; GO, with the same
#   data on the same connection right after it, tells the size of the file.
# Right: the NBD document (NBD_OPT_INFO and NBD_OPT_GO) has INFO answer as GO would, so that a client can look first.
# Who is hit: whoever lists exports and their sizes, and whoever decides by INFO whether an image fits.
# Output seen (2026-11-27):
#   INFO: 0 bytes
#   GO: 1048576 bytes
# Ends with 0 if it is so still, with 1 if not.
set -euo pipefail

port=${PORT:-5032}
dir=$(mktemp -d)
trap 'kill "$(cat "$dir/pid" 2>/dev/null)" 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get -o APT::Sandbox::User=root download -q nbd-server=1:3.24-1.1 >/dev/null
dpkg -x nbd-server_*.deb .
truncate -s 1M image
cat >config <<EOF
[generic]
listenaddr = 127.0.0.1
port = $port
[disk]
exportname = $dir/image
EOF
bin/nbd-server -C "$dir/config" -p "$dir/pid" >log 2>&1
python3 - "$port" <<'PY'
import socket, struct, sys, time

port = int(sys.argv[1])
line = None
for _ in range(100):
    try:
        line = socket.create_connection(("127.0.0.1", port), timeout=10)
        break
    except OSError:
        time.sleep(0.1)

def read(count):
    data = b""
    while len(data) < count:
        more = line.recv(count - len(data))
        if not more:
            sys.exit("the server closed the connection")
        data += more
    return data

def ask(option):
    data = struct.pack(">I", 4) + b"disk" + struct.pack(">H", 0)
    line.sendall(struct.pack(">8sII", b"IHAVEOPT", option, len(data)) + data)
    size = None
    while True:
        _, _, kind, length = struct.unpack(">QIII", read(20))
        body = read(length)
        if kind == 3 and body[:2] == b"\0\0":
            size = struct.unpack(">HQH", body)[1]
        if kind != 3:
            return size

read(18)
line.sendall(struct.pack(">I", 3))
info, go = ask(6), ask(7)
print(f"INFO: {info} bytes\nGO: {go} bytes")
sys.exit((info, go) != (0, 1048576))
PY
