# shellcheck shell=bash
#
# The same requests to ashlar and to other servers: nbdkit's memory plugin, qemu-nbd and nbd-server, each with a disk of 16 MiB.
# Sourced by scripts/tools, whose functions and variables it uses.

# run_rivals: all servers, and what they are compared in.
run_rivals() {
    server=$work/rivals
    log=$server/check-log
    server_new "$server"
    rivals_wanted || return 0
    server_create "$server" disk0 16M
    server_create "$server" disk1 16M
    server_start "$server"
    # Installed, nbd-server would become a service that listens on NBD's port; unpacked it does nothing.
    download_package nbd-server "$server/nbd-server"
    rivals_start || die "the other servers did not start: $(tail -n 5 "$server"/rivals-log)"
    run rivals/answers strictly rivals_answers
    run rivals/transaction_log strictly rivals_transaction_log
    rivals_stop
    run rivals/stop server_stop "$server"
    run rivals/no_complaints no_complaints
}

rivals_wanted() { wanted rivals/answers || wanted rivals/transaction_log; }

# rivals_start: the others, in the background. nbd-server can only go there by itself, and says in a file who it is.
rivals_start() {
    local name deadline=$((SECONDS + 30))
    truncate -s 16M "$server"/{qemu,nbd,replayed}.img
    nbdkit --foreground --exit-with-parent --unix "$server/nbdkit.sock" memory 16M >>"$server/rivals-log" 2>&1 </dev/null &
    rivals=($!)
    qemu-nbd --persistent --shared=32 --socket="$server/qemu.sock" --export-name=disk0 --format=raw --discard=unmap \
        "$server/qemu.img" >>"$server/rivals-log" 2>&1 </dev/null &
    rivals+=($!)
    cat >"$server/nbd.conf" <<EOF
[generic]
	unixsock = $server/nbd.sock
	listenaddr = 127.0.0.1
	port = $(free_port)
	allowlist = true
[disk0]
	exportname = $server/nbd.img
	filesize = 16777216
	flush = true
	fua = true
	trim = true
[logged]
	exportname = $server/nbd.img
	filesize = 16777216
	flush = true
	transactionlog = $server/transactions
	datalog = true
EOF
    "$server/nbd-server/bin/nbd-server" -C "$server/nbd.conf" -p "$server/nbd.pid" >>"$server/rivals-log" 2>&1 </dev/null
    for name in nbdkit.sock qemu.sock nbd.sock nbd.pid; do
        until [[ -e $server/$name ]]; do
            ((SECONDS < deadline)) || return 1
            sleep 0.1
        done
    done
    rivals+=("$(<"$server/nbd.pid")")
}

# rivals_stop: by their pids. Also called at the end, whatever ended us.
rivals_stop() {
    [[ -z ${rivals:-} ]] || kill "${rivals[@]}" 2>/dev/null || true
    rivals=()
}

# rivals_answers: what is different is listed in differential.expected, with these versions; with others only ashlar's part of it holds.
rivals_answers() {
    local versions expected=$here/differential.expected seed=${SEED:-$RANDOM}
    versions="# $(nbdkit --version), $(qemu-nbd --version | sed -n '1s/ (.*//p'), nbd-server $(nbd_server_version)"
    echo "SEED=$seed"
    {
        echo "$versions"
        python3 "$here/differential.py" --seed "$seed" "ashlar=$server/socket/disk0" "nbdkit=$server/nbdkit.sock/disk0" \
            "qemu-nbd=$server/qemu.sock/disk0" "nbd-server=$server/nbd.sock/disk0"
    } >"$server/answers"
    if [[ $(head -n 1 "$expected") == "$versions" ]]; then
        diff "$expected" "$server/answers"
    else
        echo "not the versions that were compared: $versions"
        diff <(ashlars_part "$expected") <(ashlars_part "$server/answers")
    fi
}

nbd_server_version() { "$server/nbd-server/bin/nbd-server" -V | sed -n 's/^This is nbd-server version //p'; }

ashlars_part() { sed -n '2,$s/: \(all\|ashlar\) \([^;]*\).*/: \2/p' "$1"; }

# rivals_transaction_log: nbd-server's own log of some writes, as nbd-trdump reads it, put into an empty image by nbd-trplay: that is what
# ashlar holds after the same writes.
rivals_transaction_log() {
    python3 "$here/differential.py" --seed 1 --writes "$server/nbd.sock/logged" "$server/socket/disk1"
    "$server/nbd-server/bin/nbd-trdump" <"$server/transactions" >"$server/dumped"
    [[ $(grep -c 'NBD_CMD_WRITE' "$server/dumped") == 300 ]]
    "$server/nbd-server/bin/nbd-trplay" -i "$server/replayed.img" -l "$server/transactions"
    qemu-img compare -f raw -F raw "$server/replayed.img" "nbd+unix:///disk1?socket=$server/socket"
}
