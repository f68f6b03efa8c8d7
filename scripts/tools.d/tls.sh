# shellcheck shell=bash
#
# Real clients over TLS: a server that requires it and asks for certificates, with files that `ashlar tls` made.
# Sourced by scripts/tools, whose functions and variables it uses.

# run_tls: all checks over TLS, on a server and a store of their own.
run_tls() {
    local check
    server=$work/tls
    log=$server/check-log
    server_new "$server"
    server_create "$server" disk0 "$size"
    server_create "$server" disk1 1M
    "$SERVER_PROGRAM" tls init "$server/tls" localhost 127.0.0.1 >"$server/said"
    "$SERVER_PROGRAM" tls client "$server/tls" alice >>"$server/said"
    "$SERVER_PROGRAM" tls client "$server/tls" mallory >>"$server/said"
    cat >"$server/ashlar.toml" <<EOF
[nbd.tls]
mode = "required"
certificate = "$server/tls/server-cert.pem"
key = "$server/tls/server-key.pem"
client_ca = "$server/tls/ca-cert.pem"
[[nbd.access]]
exports = ["disk0"]
write = ["cert:alice"]
[[nbd.access]]
exports = ["disk1"]
read = ["cert:alice"]
EOF
    server_start "$server"
    port=$(<"$server/port")
    export port
    uri="nbds://localhost:$port/disk0?tls-certificates=$server/tls/alice"
    for check in tls_nbdinfo tls_list tls_nbdcopy tls_qemu tls_nbdkit tls_read_only tls_refused; do run "tls/${check#tls_}" strictly "check_$check"; done
    run tls/stop server_stop "$server"
    run tls/no_complaints no_complaints
}

check_tls_nbdinfo() { [[ $(nbdinfo --size "$uri") == "$size" ]] && nbdinfo "$uri" | grep -q 'protocol: .*with TLS'; }

# Both are hers to see.
check_tls_list() { nbdinfo --list "${uri/disk0/}" | grep -c '^export=' | grep -qx 2; }

check_tls_nbdcopy() {
    picture "$server/picture"
    nbdcopy --flush "$server/picture" "$uri"
    nbdcopy "$uri" "$server/copy"
    cmp "$server/picture" "$server/copy"
}

check_tls_qemu() {
    local creds=tls-creds-x509,id=tls0,endpoint=client,dir=$server/tls/alice
    local target=driver=nbd,host=localhost,port=$port,export=disk0,tls-creds=tls0
    qemu-io --object "$creds" --image-opts "$target" -c 'write -P 0x5a 1M 3M' -c flush -c 'read -P 0x5a 1M 3M' | tee /dev/stderr |
        grep -q 'read 3145728/3145728'
}

# nbdkit's nbd plugin hands the export on without TLS.
check_tls_nbdkit() {
    local far=(hostname=localhost "port=$port" export=disk0 tls=require "tls-certificates=$server/tls/alice")
    [[ $(nbdkit -U - nbd "${far[@]}" --run 'nbdinfo --size "$uri"') == "$size" ]]
}

check_tls_read_only() {
    nbdinfo --json "${uri/disk0/disk1}" | grep -q '"is_read_only": true'
    if nbdcopy --flush "$server/said" "${uri/disk0/disk1}"; then return 1; fi
}

# Neither a client without TLS, nor one without a certificate, nor one whose certificate no rule names.
check_tls_refused() {
    local stranger
    for stranger in "nbd://localhost:$port/disk0" "nbds://localhost:$port/disk0" "${uri/alice/mallory}"; do
        if nbdinfo "$stranger"; then return 1; fi
    done
    nbdinfo --size "$uri"
}
