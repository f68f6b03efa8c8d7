# shellcheck shell=bash
#
# Servers of a script's own on the loopback: started in a fresh folder, waited for, and ended with the script.
# Sourced, never run. Afterwards the working directory is that folder.

loopback=$(mktemp -d "${TMPDIR:-/tmp}/ashlar-loopback.XXXXXX")
cd "$loopback" || exit
pids=()

loopback_end() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$loopback"
}
trap loopback_end EXIT
trap 'exit 130' INT TERM

# fail WORD…: say what is wrong, show the ends of all logs, and end the script.
fail() { echo "${0##*/}: $*" >&2; tail -n 20 -- *.log >&2; exit 1; }

# begin NAME COMMAND…: start a server; its log is NAME.log, its pid is in `begun`.
begin() {
    local name=$1
    shift
    "$@" >"$name.log" 2>&1 </dev/null &
    begun=$!
    pids+=("$begun")
}

# await WHAT COMMAND…: try the command until it succeeds. The server that was begun last must live meanwhile.
await() {
    local what=$1 deadline=$((SECONDS + 120))
    shift
    until "$@" >/dev/null 2>&1; do
        kill -0 "$begun" 2>/dev/null || fail "$what ended while it started"
        ((SECONDS < deadline)) || fail "$what does not answer within 120 s"
        sleep 0.1
    done
}

# end PID: ask a server to leave, and wait until it has, with status 0.
end() { kill -TERM "$1"; wait "$1" || fail "the server did not stop cleanly: $?"; }

# pip_install PACKAGE…: into a virtual environment of the folder.
pip_install() { python3 -m venv venv && venv/bin/pip install -q "$@"; }
