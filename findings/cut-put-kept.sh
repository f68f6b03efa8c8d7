#!/usr/bin/env bash
# localbucket keeps what came of a PUT whose connection broke, as if it were the object.
#
# Software: PyPI localbucket 1.2.1 (an S3 server over a directory), Python's own socket and http.client. No ashlar.
# Behaviour: a PUT with Content-Length 100000 and If-None-Match: *, of which 50000 bytes come before the client closes the
#   connection, leaves an object of 50000 bytes. The client's retry, create-only as the PUT before, is answered with 412
#   (PreconditionFailed), which a client may take for "my first attempt got through".
# Cause, read in its source: the body is read with one read(length) of the connection, which returns early at its end; the length is not
#   compared. It is written to a temporary file and linked, so nothing is seen of it before.
# Right: S3 answers IncompleteBody, and leaves nothing.
# Output seen (2026-11-27):
#   while it is sent: 404
#   after the cut: 200, 50000 bytes of 100000
#   create-only retry: 412
# Ends with 0 if it is so still, with 1 if not.
set -euo pipefail

port=${PORT:-5031}
dir=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT
server=
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q localbucket==1.2.1
mkdir "$dir/data"
"$dir/venv/bin/localbucket" --port "$port" "$dir/data" >"$dir/log" 2>&1 & server=$!
python3 - "$port" <<'PY'
import http.client, socket, sys, time

port, whole = int(sys.argv[1]), b"x" * 100000

def ask(method, path, body=None, headers={}):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()

for _ in range(100):
    try:
        ask("PUT", "/bucket")
        break
    except OSError:
        time.sleep(0.1)
cut = socket.create_connection(("127.0.0.1", port))
cut.sendall(b"PUT /bucket/object HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: *\r\nContent-Length: 100000\r\n\r\n" + whole[:50000])
time.sleep(1)
early, _ = ask("GET", "/bucket/object")
print("while it is sent:", early)
cut.close()
for _ in range(50):
    status, there = ask("GET", "/bucket/object")
    if status == 200:
        break
    time.sleep(0.1)
print(f"after the cut: {status}, {len(there)} bytes of {len(whole)}")
retry, _ = ask("PUT", "/bucket/object", whole, {"If-None-Match": "*"})
print("create-only retry:", retry)
sys.exit((early, status, len(there), retry) != (404, 200, 50000, 412))
PY
