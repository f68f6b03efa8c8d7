#!/usr/bin/env bash
# QEMU's NBD client, once extended headers are agreed, sends WRITE without the flag NBD_CMD_FLAG_PAYLOAD_LEN, and its payload behind it.
#
# Software: qemu-utils 1:10.0.2+ds-2+deb13u1~bpo12+1 of Debian's backports, unpacked from its package, and a server of a few lines of Python. No ashlar.
# Behaviour: qemu-io asks for extended headers (option 11), gets them, and writes 4 KiB: the request has the flags 0 (or FUA alone).
# Right: the NBD document's branch extension-ext-header: a client that agreed on extended headers sets the flag on each WRITE, so that a server knows from the flag alone
#   whether the length is that of a payload.
# Who is hit: whoever writes a server by that document. One that takes the flag at its word reads the payload as the next request, and ends the connection: each write
#   of a virtual machine fails. QEMU's own server takes a WRITE without the flag, and so notices nothing.
# Output seen (2026-11-29):
#   WRITE of 4096 bytes, flags 0
# Ends with 0 if it is so still, with 1 if not.
set -euo pipefail

port=${PORT:-5033}
version='1:10.0.2+ds-2+deb13u1~bpo12+1'
dir=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT
server=
cd "$dir"

# The backports of this machine's own Debian archive, whether or not they are among its sources.
mkdir -p lists/partial
apt-get indextargets --format "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" 'Created-By: Packages' 'Origin: Debian' |
    awk '$4 == "bookworm" { $4 = "bookworm-backports"; print }' | sort -u >sources.list
options=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$dir/lists" -o APT::Sandbox::User=root)
apt-get "${options[@]}" -q update >log 2>&1
apt-get "${options[@]}" -q download "qemu-utils=$version" >>log 2>&1
dpkg -x qemu-utils_*.deb root

cat >server.py <<'PY'
import socket, struct, sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
client, _ = listener.accept()

def read(count):
    data = b""
    while len(data) < count:
        more = client.recv(count - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data

client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
read(4)
attached = False
while not attached:
    _, option, length = struct.unpack(">8sII", read(16))
    data = read(length)
    def reply(kind, body=b""):
        client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(body)) + body)
    if option == 11:
        reply(1)
    elif option == 7:
        reply(3, struct.pack(">HQH", 0, 1 << 20, 1 | 4 | 8))   # HAS_FLAGS, SEND_FLUSH, SEND_FUA
        reply(1)
        attached = True
    else:
        reply(0x80000001)
while True:
    magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQQ", read(32))
    if kind == 1:
        print(f"WRITE of {length} bytes, flags {flags}", flush=True)
        read(length)
    if kind == 2:
        break
    # An extended reply: DONE, of type NONE.
    client.sendall(struct.pack(">IHHQQQ", 0x6E8A278C, 1, 0, cookie, offset, 0))
PY
python3 server.py "$port" >seen &
server=$!
until grep -q listening seen; do sleep 0.1; done
timeout 60 root/usr/bin/qemu-io -f raw -t writeback -c 'write 0 4k' "nbd://127.0.0.1:$port/" >log 2>&1 || { cat log; exit 1; }
grep WRITE seen
grep -qx 'WRITE of 4096 bytes, flags 0' seen
