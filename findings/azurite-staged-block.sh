#!/usr/bin/env bash
# In Azurite a block that somebody staged and never committed keeps a blob from being created for ever, and no reader sees why.
#
# Software: npm azurite 3.37.0 (Azure's emulator), curl, python3 for a SAS token. No ashlar.
# Behaviour: after one Put Block, Put Blob with If-None-Match: * answers 409 BlobAlreadyExists, while GET answers 404 BlobNotFound. Put Block List with the same
#   condition works; but the block that it commits must have a name as long as the staged one, else Put Block answers 400 InvalidBlobOrBlock.
# Wrong guess: "409 BlobAlreadyExists, so there is a blob that can be read back and compared".
# Right, by Azure's documents: Put Blob throws uncommitted blocks away; names of blocks of one blob are equally long there, too.
# Output seen (2026-11-28):
#   Put Block: 201
#   Put Blob, If-None-Match: *: 409 BlobAlreadyExists
#   GET: 404 BlobNotFound
#   Put Block, a longer name: 400 InvalidBlobOrBlock
#   Put Block, as long a name: 201
#   Put Block List, If-None-Match: *: 201
# Ends with 0 if it is so still, with 1 if not.
set -euo pipefail

port=${PORT:-5071}
dir=$(mktemp -d)
server=
trap 'kill -KILL "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT
npm install --silent --no-audit --no-fund --prefix "$dir" azurite@3.37.0 >"$dir/npm.log" 2>&1
key=$(head -c 32 /dev/urandom | base64 -w 0)
AZURITE_ACCOUNTS="finding:$key" node "$dir/node_modules/azurite/dist/src/blob/main.js" --location "$dir/data" --blobPort "$port" \
    --silent --disableTelemetry >"$dir/log" 2>&1 & server=$!
python3 - "$port" "$key" <<'PY'
import base64, hashlib, hmac, http.client, sys, time, urllib.parse

port, key = sys.argv[1:]
fields = {"sp": "rwdlac", "ss": "b", "srt": "sco", "st": "", "se": "2099-01-01T00:00:00Z", "sip": "", "spr": "https,http", "sv": "2020-10-02"}
text = "\n".join(["finding", *fields.values(), ""])
fields["sig"] = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
token = urllib.parse.urlencode({name: value for name, value in fields.items() if value})

def ask(method, path, query="", body=b"", headers={}):
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    connection.request(method, f"/finding/{path}?{query}&{token}", body, headers)
    answer = connection.getresponse()
    answer.read()
    return f"{answer.status} {answer.getheader('x-ms-error-code') or ''}".strip()

for _ in range(150):
    try:
        ask("PUT", "disks", "restype=container")
        break
    except OSError:
        time.sleep(0.1)
only_new = {"If-None-Match": "*"}
block = lambda name: "comp=block&blockid=" + urllib.parse.quote(base64.b64encode(name).decode())
listed = b"<BlockList><Uncommitted>" + base64.b64encode(b"ours") + b"</Uncommitted></BlockList>"
steps = [
    ("Put Block", ask("PUT", "disks/blob", block(b"them"), b"half")),
    ("Put Blob, If-None-Match: *", ask("PUT", "disks/blob", "", b"whole", {"x-ms-blob-type": "BlockBlob", **only_new})),
    ("GET", ask("GET", "disks/blob")),
    ("Put Block, a longer name", ask("PUT", "disks/blob", block(b"longer"), b"whole")),
    ("Put Block, as long a name", ask("PUT", "disks/blob", block(b"ours"), b"whole")),
    ("Put Block List, If-None-Match: *", ask("PUT", "disks/blob", "comp=blocklist", listed, only_new)),
]
for what, answer in steps:
    print(f"{what}: {answer}")
expected = ["201", "409 BlobAlreadyExists", "404 BlobNotFound", "400 InvalidBlobOrBlock", "201", "201"]
sys.exit([answer for _, answer in steps] != expected)
PY
