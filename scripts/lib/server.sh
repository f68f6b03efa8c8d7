# shellcheck shell=bash
#
# The server under test, for the scripts that drive it with real clients: create volumes, start, kill, stop, and measure
# what lies in its store. This is the only file that knows the command line of the server.
# Sourced, never run. Needs say.sh.
#
# A server is an instance in a folder of its own (server_new FOLDER): several may run side by side, each with its own store.
# Its pid, port and store URL are files there, so that every function needs only the folder. A server must be started and
# ended by the same shell, because only a parent learns the exit status.
#
# Environment (not named ASHLAR_…: those are configuration keys of the server itself):
#   SERVER_KIND        ashlar (default), or nbdkit: a stand-in over sparse files, to prove the scripts themselves
#   SERVER_PROGRAM     the program to run; default: built from this tree (cargo build --release)
#   SERVER_STORE       where the stores are; default: a folder of the instance. moto or radosgw: an S3 server on the loopback,
#                      started for this run (see scripts/s3). An s3:// URL: there, every instance below a fresh prefix;
#                      endpoint and credentials come from the environment, as for any run of ashlar
#   SERVER_ARGUMENTS   further arguments of `ashlar serve`, separated by blanks

: "${repository:?must be set before server.sh is sourced}"
server_kind=${SERVER_KIND:-ashlar}
server_start_seconds=${SERVER_START_SECONDS:-60}
server_stop_seconds=${SERVER_STOP_SECONDS:-120}

# server_prepare FOLDER: what must be there before the first server_new: the program, and the S3 server if one is asked for.
server_prepare() {
    prepare_program
    case ${SERVER_STORE:-} in
        moto | radosgw) start_s3 "$SERVER_STORE" "$1/s3" ;;
    esac
}

# server_finish FOLDER: ends what server_prepare started.
server_finish() { [[ ! -e $1/s3/kind ]] || "$repository/scripts/s3/$(<"$1/s3/kind")" stop "$1/s3" >/dev/null; }

# start_s3 KIND FOLDER: start an S3 server on free ports, and tell ashlar by its environment how to reach it.
start_s3() {
    local kind=$1 folder=$2 reached
    mkdir -p "$folder"
    echo "$kind" >"$folder/kind"
    MOTO_PORT=$(free_port) RADOSGW_PORT=$(free_port) MON_PORT=$(free_port)
    export MOTO_PORT RADOSGW_PORT MON_PORT
    reached=$("$repository/scripts/s3/$kind" start "$folder")
    value() { sed -n "s/^ASHLAR_TEST_S3_$1=//p" <<<"$reached"; }
    SERVER_STORE=s3://$(value BUCKET)
    export ASHLAR_STORE__S3__ENDPOINT AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY ASHLAR_STORE__S3__ALLOW_HTTP=true
    ASHLAR_STORE__S3__ENDPOINT=$(value ENDPOINT)
    AWS_ACCESS_KEY_ID=$(value ACCESS)
    AWS_SECRET_ACCESS_KEY=$(value SECRET)
}

# prepare_program: sets SERVER_PROGRAM, building it unless it was given.
prepare_program() {
    case $server_kind in
        ashlar)
            if [[ -z ${SERVER_PROGRAM:-} ]]; then
                say "building ashlar"
                (cd "$repository" && cargo build --release --locked --quiet)
                SERVER_PROGRAM=${CARGO_TARGET_DIR:-$repository/target}/release/ashlar
            fi
            [[ -x $SERVER_PROGRAM ]] || die "no program at $SERVER_PROGRAM; unset SERVER_PROGRAM to build it"
            ;;
        nbdkit) need_packages nbdkit ;;
        *) die "SERVER_KIND is $server_kind; known are ashlar and nbdkit" ;;
    esac
}

# server_new FOLDER: a new instance with an empty store, not yet running.
server_new() {
    local folder=$1
    mkdir -p "$folder/store" "$folder/state"
    case ${SERVER_STORE:-} in
        s3://*) echo "${SERVER_STORE%/}/$(date +%s)-$$-$RANDOM" ;;
        '') echo "file://$folder/store" ;;
        *) die "SERVER_STORE is $SERVER_STORE; leave it unset for a folder, or give moto, radosgw or an s3:// URL" ;;
    esac >"$folder/url"
    free_port >"$folder/port"
}

# free_port: a TCP port of the loopback that nobody listens on, below the range the kernel gives out by itself.
free_port() {
    local port
    while port=$((10000 + RANDOM % 20000)); do
        listening "$port" || break
    done
    echo "$port"
}

# listening PORT: does somebody accept connections there?
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# ashlar FOLDER COMMAND…: run a command of ashlar on the instance's store; what it says is shown if it fails. It runs in the
# instance's folder, so that no configuration file of the caller's takes part.
ashlar() {
    local folder=$1 url
    url=$(<"$folder/url")
    shift
    (cd "$folder" && "$SERVER_PROGRAM" "$@" --store "$url") >"$folder/said" 2>&1 || {
        warn "ashlar $* failed: $(<"$folder/said")"
        return 1
    }
}

# server_create FOLDER VOLUME SIZE: make a thin volume.
server_create() {
    local folder=$1 volume=$2 size=$3
    case $server_kind in
        ashlar) ashlar "$folder" create "$volume" --size "$size" ;;
        nbdkit) truncate -s "$size" "$folder/store/$volume" ;;
    esac
}

# server_resize FOLDER VOLUME SIZE [FLAG…]: give a volume another size.
server_resize() {
    case $server_kind in
        ashlar) ashlar "$1" resize "${@:2}" --state "$1/state" ;;
        nbdkit) echo "nbdkit has no other size for a volume that it serves"; return 1 ;;
    esac
}

# server_snapshot FOLDER create|delete VOLUME@NAME: take a snapshot, or delete it.
server_snapshot() {
    case $server_kind in
        ashlar) ashlar "$1" snapshot "${@:2}" --state "$1/state" ;;
        nbdkit) echo "nbdkit has no snapshots"; return 1 ;;
    esac
}

# server_rollback FOLDER VOLUME@NAME: the snapshot becomes the newest state of its volume.
server_rollback() {
    case $server_kind in
        ashlar) ashlar "$1" rollback "$2" --state "$1/state" ;;
        nbdkit) echo "nbdkit has no snapshots"; return 1 ;;
    esac
}

# server_clone FOLDER VOLUME@NAME NEW, or --detach NEW: make a clone, or make it independent.
server_clone() {
    case $server_kind in
        ashlar) ashlar "$1" clone "${@:2}" --state "$1/state" ;;
        nbdkit) echo "nbdkit has no clones"; return 1 ;;
    esac
}

# server_store_away FOLDER: its store answers nothing any more, as a directory of which the filesystem is unmounted.
server_store_away() {
    [[ $(<"$1/url") == file://* ]] || { echo "only a store in a directory goes away; unset SERVER_STORE"; return 1; }
    mv "$1/store" "$1/unmounted" && mkdir "$1/store"
}

# server_store_back FOLDER: it answers again.
server_store_back() { rmdir "$1/store" && mv "$1/unmounted" "$1/store"; }

# server_command FOLDER: sets `command` to what starts the server in the foreground.
server_command() {
    local folder=$1 port
    port=$(<"$folder/port")
    case $server_kind in
        ashlar)
            local more=()
            read -ra more <<<"${SERVER_ARGUMENTS:-}"
            command=("$SERVER_PROGRAM" serve --store "$(<"$folder/url")" --state "$folder/state" \
                --listen "127.0.0.1:$port" --socket "$folder/socket" "${more[@]}")
            ;;
        nbdkit)
            # nbdkit serves either TCP or a socket; the stand-in is told which by $STANDIN_SOCKET.
            local where=(--ipaddr 127.0.0.1 --port "$port")
            [[ -n ${STANDIN_SOCKET:-} ]] && where=(--unix "$folder/socket")
            command=(nbdkit --foreground --exit-with-parent "${where[@]}" file "dir=$folder/store")
            ;;
    esac
}

# server_start FOLDER: start it and wait until it accepts connections.
server_start() {
    local folder=$1 command pid deadline
    server_command "$folder"
    rm -f "$folder/socket"
    printf '%(%T)T starting: %s\n' -1 "${command[*]}" >>"$folder/log"
    (cd "$folder" && exec "${command[@]}") >>"$folder/log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$folder/pid"
    deadline=$((SECONDS + server_start_seconds))
    until server_ready "$folder"; do
        kill -0 "$pid" 2>/dev/null || {
            rm -f "$folder/pid"
            warn "the server left while starting; its last lines: $(tail -n 5 "$folder/log")"
            return 1
        }
        ((SECONDS < deadline)) || {
            warn "the server did not accept connections within $server_start_seconds s"
            return 1
        }
        sleep 0.1
    done
}

# server_ready FOLDER: does it accept connections?
server_ready() {
    if [[ $server_kind == nbdkit && -n ${STANDIN_SOCKET:-} ]]; then
        [[ -S $1/socket ]]
    else
        listening "$(<"$1/port")"
    fi
}

# server_kill FOLDER: end it at once, as a crash would (kill -9).
server_kill() {
    local pid
    pid=$(<"$1/pid")
    rm "$1/pid"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null || true   # the shell's own notice of the kill is no news
    printf '%(%T)T killed\n' -1 >>"$1/log"
}

# server_stop FOLDER: end it in good order (SIGTERM). It must leave in time and with exit status 0.
server_stop() {
    local folder=$1 pid deadline status=0
    pid=$(<"$folder/pid")
    rm "$folder/pid"
    kill -TERM "$pid"
    deadline=$((SECONDS + server_stop_seconds))
    while kill -0 "$pid" 2>/dev/null; do
        ((SECONDS < deadline)) || {
            kill -KILL "$pid"
            wait "$pid" 2>/dev/null || true
            warn "the server did not stop within $server_stop_seconds s"
            return 1
        }
        sleep 0.1
    done
    wait "$pid" || status=$?
    printf '%(%T)T stopped with exit status %s\n' -1 "$status" >>"$folder/log"
    [[ $status == 0 ]] || warn "the server stopped with exit status $status"
    return "$status"
}

# server_replace FOLDER: another process takes the place of the one that runs, which must leave by itself.
server_replace() {
    local folder=$1 before SERVER_ARGUMENTS="${SERVER_ARGUMENTS:-} --replace"
    before=$(<"$folder/pid")
    server_start "$folder" || return 1
    wait "$before" || { warn "the server that was replaced left with exit status $?"; return 1; }
    until server_ready "$folder"; do sleep 0.05; done
}

# server_running FOLDER
server_running() { [[ -e $1/pid ]]; }

# server_end FOLDER…: clean up: kill what still runs. Never fails.
server_end() {
    local folder
    for folder in "$@"; do
        if server_running "$folder"; then server_kill "$folder" || true; fi
    done
}

# server_check FOLDER VOLUME: let the server's own verification read everything; it is asked while no server runs.
server_check() {
    case $server_kind in
        ashlar) ashlar "$1" check "$2" --data ;;
        nbdkit) true ;;
    esac
}

# server_uri FOLDER VOLUME tcp|unix: how a client reaches the volume.
server_uri() {
    case $3 in
        tcp) echo "nbd://127.0.0.1:$(<"$1/port")/$2" ;;
        unix) echo "nbd+unix:///$2?socket=$1/socket" ;;
    esac
}

# server_settle FOLDER: wait until its volumes have nothing left to upload, to collect or to delete. A server that does not answer
# for a moment is not at rest.
server_settle() {
    local deadline=$((SECONDS + 180)) status
    [[ $server_kind == ashlar ]] || return 0
    until status=$("$SERVER_PROGRAM" status --state "$1/state" --json) &&
        ! grep -q -E '"(dirty_bytes|dead_bytes|backlog_bytes|doomed_objects)": [1-9]' <<<"$status"; do
        ((SECONDS < deadline)) || { warn "not at rest after 180 s: ${status:-it does not answer}"; return 1; }
        sleep 0.5
    done
}

# server_usage FOLDER: "OBJECTS BYTES" that its store holds now.
server_usage() {
    local url
    url=$(<"$1/url")
    case $server_kind/$url in
        ashlar/file://*) count_files "${url#file://}" '%s' 1 ;;
        ashlar/s3://*) count_volumes "$1" ;;
        nbdkit/*) count_files "$1/store" '%b' 512 ;;
    esac
}

# count_files FOLDER FORMAT UNIT: number of files, and the sum of one of find's figures.
count_files() {
    { find "$1" -type f -printf "$2\n" 2>/dev/null || true; } |   # files may vanish while we look
        awk -v unit="$3" '{ sum += $1 } END { printf "%d %.0f\n", NR, sum * unit }'
}

# count_volumes FOLDER: the same as the server's own figures say, for stores that no folder shows.
count_volumes() {
    ashlar "$1" list --json
    python3 -c '
import json, sys
volumes = json.load(sys.stdin)
print(sum(volume["objects"] for volume in volumes), sum(volume["stored_bytes"] for volume in volumes))' <"$1/said"
}
