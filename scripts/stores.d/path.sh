# shellcheck shell=bash disable=SC2154,SC2155
#
# A directory that is served in two ways: as a directory, and by an S3 server that keeps objects as plain files: localbucket (PyPI), or s3s-fs (crates.io) if
# that is to be path-verified; both in the cache folder. Sourced by scripts/stores, in a folder of its own.

: "${ashlar:?is run by scripts/stores}" "${store:?}"
pids=()
trap 'for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done' EXIT

cached=${XDG_CACHE_HOME:-$HOME/.cache}/ashlar
need_packages curl
port=$first_port
export AWS_ACCESS_KEY_ID=ashlar-test AWS_SECRET_ACCESS_KEY=ashlar-test-secret
export ASHLAR_STORE__S3__ALLOW_HTTP=true ASHLAR_STORE__S3__ENDPOINT=http://127.0.0.1:$port
for picture in first second third; do head -c 3000000 /dev/urandom >$picture; done

# by WAY: from here on the store is reached through the S3 server, or by its path.
by() {
    case $1 in
        s3) export ASHLAR_STORE__URL=s3://disks/v ;;
        path) export ASHLAR_STORE__URL=file://$PWD/$name/disks/v ;;
    esac
}

# server NAME COMMAND…: an S3 server on the directory NAME.
server() {
    name=$1
    shift
    mkdir -p "$name/disks"
    begin "$name" "$@"
    s3=$begun
    await "$name" curl -s -o /dev/null "http://127.0.0.1:$port/"
}

# turn WAY BEFORE AFTER: that way a server finds the picture BEFORE, writes AFTER, and leaves; each way has a host of its own.
turn() {
    by "$1"
    serve "${hosts[$1]}"
    served "${hosts[$1]}"
    [[ $2 == nothing ]] || holds "${hosts[$1]}" "$2"
    nbdcopy --flush "$3" "$(at "${hosts[$1]}")" || fail "writing by $1"
    end "$begun"
}
declare -A hosts=([s3]=1 [path]=2)

# there_and_back ONE OTHER: a volume that is made in one way, and used in both.
there_and_back() {
    local way
    turn "$1" nothing first
    turn "$2" first second
    turn "$1" second third
    turn "$2" third first
    for way in s3 path; do
        by $way
        [[ $("$ashlar" list --state state-3 --json) == *'"name": "w"'* ]] || fail "list by $way does not have the volume"
        "$ashlar" check w --data --state state-3 >check.log 2>&1 || fail "check by $way"
    done
}

# at_once ONE OTHER: a server is frozen, and the volume is taken from it in the other way.
at_once() {
    local displaced
    by "$1"
    serve "${hosts[$1]}"
    served "${hosts[$1]}"
    displaced=$begun
    nbdcopy --flush second "$(at "${hosts[$1]}")" || fail "writing by $1"
    by "$2"
    ASHLAR_LOG__LEVEL=error refused 'was opened by .* and not closed' serve w --state "state-${hosts[$2]}" --listen "127.0.0.1:$((first_port + 4))" --socket none
    kill -STOP "$displaced"
    serve "${hosts[$2]}" --takeover
    served "${hosts[$2]}"
    holds "${hosts[$2]}" second
    nbdcopy --flush first "$(at "${hosts[$2]}")" || fail "writing by $2"
    kill -CONT "$displaced"
    if nbdcopy --flush third "$(at "${hosts[$1]}")" 2>displaced.log; then fail "the server by $1 acknowledged a FLUSH after the volume was taken by $2"; fi
    kill -KILL "$displaced"
    holds "${hosts[$2]}" first
    end "$begun"
    # Its journal has what was never acknowledged to be flushed, and is in its way from now on.
    rm -r "state-${hosts[$1]}"
}

# gone WAY: the volume is deleted in that way, and is not there in the other either.
gone() {
    local way
    by "$1"
    "$ashlar" delete w --yes --state state-3 >delete.log 2>&1 || fail "delete by $1"
    for way in s3 path; do
        by $way
        [[ $("$ashlar" list --state state-3 --json) == *'[]'* ]] || fail "after delete by $1 there is something by $way"
    done
}

# both_ways FENCING: a volume that is made in one way, and one that is made in the other, for that mode.
both_ways() {
    local way other
    for way in s3 path; do
        other=$([[ $way == s3 ]] && echo path || echo s3)
        by $way
        "$ashlar" create w --size 1G --state "state-${hosts[$way]}" --json >create.log 2>warned.log || fail "create by $way"
        grep -q "\"fencing\": \"$1\"" create.log || fail "the volume is not made for the mode $1"
        there_and_back "$way" "$other"
        at_once "$way" "$other"
        at_once "$other" "$way"
        gone "$other"
        say "path: $name: a volume that was made by $way"
    done
}

# One that creates a key only once, also in a race.
with_localbucket() {
    local version=1.2.1
    local folder=$cached/localbucket-$version
    if [[ ! -e $folder/ready ]]; then
        say "path: installing localbucket $version"
        rm -rf "$folder"
        { python3 -m venv "$folder" && "$folder/bin/pip" install -q "localbucket==$version"; } >pip.log 2>&1 || fail "installing localbucket"
        touch "$folder/ready"
    fi
    server localbucket "$folder/bin/localbucket" --port "$port" localbucket
    both_ways create-only
    kill "$s3"
    echo "path: one directory by path and through localbucket $version (create-only PUTs): volumes go there and back, of two servers at once one is displaced"
}

# One that lets several win. What was made by path relies on that nobody does, and is refused; a volume for verified mode is known as that in both ways.
with_s3s_fs() {
    local version=0.14.1
    local folder=$cached/s3s-fs-$version
    if [[ ! -x $folder/bin/s3s-fs ]]; then
        say "path: building s3s-fs $version"
        cargo install --quiet --locked --debug --root "$folder" --version "$version" --features binary s3s-fs >cargo.log 2>&1 || fail "building s3s-fs"
    fi
    server s3s-fs "$folder/bin/s3s-fs" --host 127.0.0.1 --port "$port" --access-key "$AWS_ACCESS_KEY_ID" --secret-key "$AWS_SECRET_ACCESS_KEY" s3s-fs
    by path
    "$ashlar" create w --size 1G --state state-2 >create.log 2>&1 || fail "create by path"
    turn path nothing first
    by s3
    ASHLAR_LOG__LEVEL=error refused 'volume w relies on create-only PUTs' serve w --state state-1 --listen "127.0.0.1:$((first_port + 4))" --socket none
    gone path
    rm -rf state-*
    export ASHLAR_STORE__FENCING=verified
    both_ways verified
    kill "$s3"
    echo "path: the same through s3s-fs $version (verified mode)"
}

if [[ $store == path ]]; then with_localbucket; else with_s3s_fs; fi
