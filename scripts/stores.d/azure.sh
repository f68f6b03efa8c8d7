# shellcheck shell=bash disable=SC2154,SC2155
#
# Azurite, Azure's own emulator, from npm. Sourced by scripts/stores, in a folder of its own. Its account and key are made up for each run.

: "${ashlar:?is run by scripts/stores}"
pids=()
trap 'for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done' EXIT

version=3.37.0
azurite=${XDG_CACHE_HOME:-$HOME/.cache}/ashlar/azurite-$version
need_packages curl python3
if [[ ! -e $azurite/node_modules/azurite/package.json ]]; then
    command -v npm >/dev/null || need_packages npm
    say "azure: installing azurite $version"
    npm install --silent --no-audit --no-fund --prefix "$azurite" "azurite@$version" >npm.log 2>&1 || fail "installing azurite"
fi
port=$first_port
account=ashlartest
storage_key=$(head -c 32 /dev/urandom | base64 -w 0)
endpoint=http://127.0.0.1:$port/$account
begin azurite env AZURITE_ACCOUNTS="$account:$storage_key" node "$azurite/node_modules/azurite/dist/src/blob/main.js" \
    --location "$PWD/data" --blobHost 127.0.0.1 --blobPort "$port" --silent --disableTelemetry
# It does not end while a connection is open: it is killed at the end.
await "azurite" curl -s -o /dev/null "http://127.0.0.1:$port/"

# A token for everything in that account, for some hours.
token=$(python3 - "$account" "$storage_key" <<'PY'
import base64, datetime, hashlib, hmac, sys, urllib.parse
account, key = sys.argv[1:]
end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
fields = {"sp": "rwdlac", "ss": "b", "srt": "sco", "st": "", "se": end, "sip": "", "spr": "https,http", "sv": "2020-10-02"}
text = "\n".join([account, *fields.values(), ""])
fields["sig"] = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
print(urllib.parse.urlencode({name: value for name, value in fields.items() if value}))
PY
)
curl -s -f -o container.log -X PUT -H 'Content-Length: 0' "$endpoint/disks?restype=container&$token" || fail "making a container"

export ASHLAR_TEST_AZURE_ENDPOINT=$endpoint ASHLAR_TEST_AZURE_ACCOUNT=$account ASHLAR_TEST_AZURE_KEY=$storage_key
export ASHLAR_TEST_AZURE_CONTAINER=disks ASHLAR_TEST_AZURE_SAS=$token
(cd "$repository" && RUST_BACKTRACE=0 cargo test --locked --quiet --test store_azure) >conformance.log 2>&1 || fail "the stores' suite"
grep -q 'test result: ok. 2[0-9] passed' conformance.log || fail "the stores' suite did not run"
say "azure: the stores' suite passed"

export ASHLAR_STORE__URL=az://disks/v AZURE_STORAGE_ACCOUNT=$account
export ASHLAR_STORE__AZURE__ENDPOINT=$endpoint ASHLAR_STORE__AZURE__ALLOW_HTTP=true
AZURE_STORAGE_KEY=d3Jvbmc= refused "403 .*AZURE_STORAGE_KEY" create w --size 1G --state state-1
export AZURE_STORAGE_KEY=$storage_key
ASHLAR_STORE__URL=az://nowhere refused "ContainerNotFound.*create the container" create w --size 1G --state state-1
ASHLAR_STORE__AZURE__ALLOW_HTTP=false refused "store.azure.allow_http" create w --size 1G --state state-1
AZURE_STORAGE_ACCOUNT='' refused "AZURE_STORAGE_ACCOUNT" create w --size 1G --state state-1
life create-only
echo "azure: Azurite $version passes the stores' suite and the race, keeps what was flushed through a kill and a takeover from a frozen server"
