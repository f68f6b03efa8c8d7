# shellcheck shell=bash disable=SC2154,SC2155
#
# Google Cloud Storage's interface: by a server of our own (gcs-server.py), which keeps conditions and wants a token of the machine's service account; and by an emulator
# of PyPI, which ignores conditions and keeps the half of a PUT that broke off, and must be refused. Sourced by scripts/stores, in a folder of its own.

# shellcheck source=../stores
: "${ashlar:?is run by scripts/stores}"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done' EXIT

need_packages python3 python3-venv curl
version=2026.7.19
pip_install "gcp-storage-emulator==$version" >pip.log 2>&1 || fail "installing the emulator"
port=$first_port
# It answers one request at a time; the trial of a PUT that breaks off needs two.
begin emulator venv/bin/python3 -c "import http.server
http.server.HTTPServer = http.server.ThreadingHTTPServer
from gcp_storage_emulator import __main__
__main__.main(['start', '--host', '127.0.0.1', '--port', '$((port + 5))', '--in-memory', '--default-bucket', 'disks'])"
await "the emulator" curl -s -f -o /dev/null "http://127.0.0.1:$((port + 5))/storage/v1/b/disks/o"
begin server python3 "$repository/scripts/stores.d/gcs-server.py" "$port"
await "the server" curl -s -o /dev/null "http://127.0.0.1:$port/storage/v1/b/disks/o"

export ASHLAR_STORE__URL=gs://disks/v
# Who is this machine? A metadata server that gives a token, and one that does not know.
cat >metadata.py <<'END'
import http.server, json, sys
class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path.startswith("/computeMetadata/v1/instance/service-accounts/default/token") and self.headers["Metadata-Flavor"] == "Google"
        body = json.dumps({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}).encode() if known and sys.argv[2] == "knows" else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Metadata).serve_forever()
END
begin metadata python3 metadata.py $((port + 3)) knows
await "the metadata server" curl -s -o /dev/null "http://127.0.0.1:$((port + 3))/"
begin ignorance python3 metadata.py $((port + 4)) nothing
await "the ignorant metadata server" curl -s -o /dev/null "http://127.0.0.1:$((port + 4))/"
ASHLAR_STORE__GCS__ENDPOINT=http://127.0.0.1:$port refused "store.gcs.allow_http" create w --size 1G --state state-1
export ASHLAR_STORE__GCS__ALLOW_HTTP=true
export HOME=$PWD # whoever runs this may have credentials of Google's
ASHLAR_STORE__GCS__ENDPOINT=http://127.0.0.1:$port GCE_METADATA_HOST=127.0.0.1:$((port + 4)) GCE_METADATA_IP=127.0.0.1:$((port + 4)) \
    refused "GOOGLE_APPLICATION_CREDENTIALS" create w --size 1G --state state-1
STORAGE_EMULATOR_HOST=127.0.0.1:$port refused "401.*GOOGLE_APPLICATION_CREDENTIALS" create w --size 1G --state state-1
STORAGE_EMULATOR_HOST=127.0.0.1:$((port + 5)) refused "PUT.* of a taken key succeeded; a PUT that broke off left its first part.*A10" create w --size 1G --state state-1

export ASHLAR_STORE__GCS__ENDPOINT=http://127.0.0.1:$port GCE_METADATA_HOST=127.0.0.1:$((port + 3))
ASHLAR_STORE__URL=gs://nowhere refused "create the bucket nowhere" list --state state-1
grep -q 'GET /computeMetadata.* 200' metadata.log || fail "the metadata server was not asked"
life create-only
echo "gcs: a server that keeps conditions keeps what was flushed through a kill and a takeover from a frozen server; the emulator $version of PyPI is refused"
