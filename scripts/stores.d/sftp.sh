# shellcheck shell=bash disable=SC2154,SC2155
#
# OpenSSH's sshd, with keys of its own. Sourced by scripts/stores, in a folder of its own.

# shellcheck source=../stores
: "${ashlar:?is run by scripts/stores}"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done' EXIT

need_packages openssh-server openssh-client openssh-sftp-server
port=$first_port
ssh-keygen -q -t ed25519 -N '' -f host-key
ssh-keygen -q -t ed25519 -N '' -f key
ssh-keygen -q -t ed25519 -N '' -f other-key
cp key.pub authorized
cat >sshd_config <<END
ListenAddress 127.0.0.1:$port
HostKey $PWD/host-key
AuthorizedKeysFile $PWD/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp $(dpkg -L openssh-sftp-server | grep '/sftp-server$' | head -n 1)
END
# config KEY KNOWN: what a user's ~/.ssh/config says, with these files.
config() {
    cat <<END
Host *
    IdentityFile $PWD/$1
    IdentitiesOnly yes
    UserKnownHostsFile $PWD/$2
    GlobalKnownHostsFile none
END
}
echo "[127.0.0.1]:$port $(cat host-key.pub)" >known
touch known-to-nobody
config key known >ssh_config
config other-key known >wrong-key
config key known-to-nobody >wrong-host
# As root it wants a directory that the system's own start makes.
[[ $(id -u) != 0 ]] || mkdir -p /run/sshd
begin sshd "$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f "$PWD/sshd_config"
sshd=$begun
await "sshd" ssh -F ssh_config -o BatchMode=yes -p "$port" 127.0.0.1 true

export ASHLAR_STORE__URL=sftp://$(id -un)@127.0.0.1:$port$PWD/store
export ASHLAR_STORE__SFTP__CONFIG_FILE=$PWD/ssh_config
ASHLAR_TEST_SFTP_URL=sftp://127.0.0.1:$port$PWD/conformance ASHLAR_TEST_SFTP_CONFIG=$PWD/ssh_config conformance external_sftp
say "sftp: the stores' suite passed"

ASHLAR_STORE__SFTP__CONFIG_FILE=$PWD/wrong-key refused "Permission denied.*store.sftp.identity_file" create w --size 1G --state state-1
ASHLAR_STORE__SFTP__CONFIG_FILE=$PWD/wrong-host refused "Host key verification failed.*known_hosts_file" create w --size 1G --state state-1
ASHLAR_STORE__SFTP__SSH=/nowhere refused "store.sftp.ssh" create w --size 1G --state state-1
ASHLAR_STORE__URL=sftp://me:secret@127.0.0.1/x refused "must not hold one" create w --size 1G --state state-1

life create-only
# Some hundred bytes of a deleted volume stay (docs/semantics.md), and what a server that was killed had begun, for a day.
find store -type f -size +16 -not -path '*/.ashlar-tmp/*' >left.log
[[ ! -s left.log ]] || fail "delete left files"
say "sftp: the life of a volume"

# Every connection breaks, again and again, while somebody writes.
"$ashlar" create w --size 1G --state state-1 >create.log || fail "create"
serve 1
served 1
server=$begun
for _ in {1..5}; do
    nbdcopy --flush first "$(at 1)" & copy=$!
    sleep 0.2
    for pid in $(pgrep -P "$server" -x ssh); do kill -KILL "$pid" 2>/dev/null || true; done
    wait "$copy" || fail "a write failed when connections broke"
done
holds 1 first
end "$server"
"$ashlar" check w --data --state state-3 >check.log 2>&1 || fail "check"
"$ashlar" delete w --yes --state state-3 >delete.log 2>&1 || fail "delete"
kill "$sshd"
echo "sftp: $(ssh -V 2>&1 | cut -d, -f1) passes the stores' suite and the race, keeps what was flushed through a kill, a takeover from a frozen server and broken connections"
