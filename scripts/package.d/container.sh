# shellcheck shell=bash
#
# A fresh Debian, booted with its own systemd in a container (systemd-nspawn), in which a script tries the package. Sourced by scripts/package.

# in_a_fresh_debian: installs, upgrades under load, removes and purges the packages in $folder.
in_a_fresh_debian() {
    local debian=$work/debian tests=$work/debian/tests
    need_packages mmdebstrap systemd-container
    say "unpacking a fresh Debian"
    mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus,kmod,libnbd-bin,man-db,python3-minimal "$(debian_codename)" "$debian" \
        2>"$work/mmdebstrap.log" || { tail -n 20 "$work/mmdebstrap.log"; die "mmdebstrap failed"; }
    mkdir -p "$tests"
    cp "$folder/ashlar_${version}-"*.deb "$repository/scripts/package.d/inside" "$tests"
    cat >"$debian/etc/systemd/system/tests.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /tests/inside
StandardOutput=append:/tests/log
StandardError=append:/tests/log
TimeoutStartSec=600
ExecStopPost=/bin/systemctl poweroff --no-block
[Install]
WantedBy=default.target
UNIT
    systemctl --root="$debian" enable tests.service >/dev/null 2>&1
    say "booting it"
    boot "$debian" >"$work/boot.log" 2>&1 || warn "the container ended with an error"
    cat "$tests/log"
    [[ -e $tests/passed ]] || { tail -n 30 "$work/boot.log"; die "the package did not pass; see above"; }
}

# boot ROOT: in a mount namespace of its own, because not every machine has what systemd-nspawn expects in /run. Its network is its own, too.
boot() {
    # shellcheck disable=SC2016 # for the inner shell
    unshare --mount bash -c 'mount --make-rprivate / && mount -t tmpfs tmpfs /run &&
        exec timeout 900 systemd-nspawn --quiet --register=no --keep-unit --private-network --console=pipe --boot --directory="$1"' boot "$1" </dev/null
}
