# shellcheck shell=bash
#
# Debian packages by name, through the machine's own apt and its configured sources; no host is named here.
# Sourced, never run. Needs say.sh.

# as_root COMMAND…: run it as root, by sudo where we are somebody else.
as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "installing packages needs root: run this as root once, or install sudo ($*)"
    fi
}

# installed PACKAGE: is it unpacked and configured?
installed() { [[ $(dpkg-query -W -f='${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]; }

# apt_get ARGUMENTS…: quiet, never asking, waiting for another apt that holds the lock; its output is shown when it fails.
apt_get() {
    local log
    log=$(mktemp)
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
}

# apt_lists: make sure that the package lists are there and not older than a day.
apt_lists() {
    local stamp=/var/lib/apt/lists
    if [[ -z $(find "$stamp" -maxdepth 1 -name '*Packages*' -mtime -1 -print -quit 2>/dev/null) ]]; then
        say "packages: updating the lists"
        apt_get update || warn "apt-get update failed; going on with the lists that are here"
    fi
}

# need_packages PACKAGE…: install those that are missing; nothing happens, and apt is not asked, when all are here.
# No package that is already here is ever removed for them.
need_packages() {
    local package missing=()
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    [[ ${#missing[@]} == 0 ]] && return 0
    apt_lists
    say "packages: installing ${missing[*]}"
    apt_get install --no-install-recommends --no-remove "${missing[@]}" ||
        die "cannot install ${missing[*]}; install them by hand and try again"
}

# download_package PACKAGE FOLDER: unpack a package into FOLDER without installing it on this machine. Where apt looks for it
# may be changed by `apt_options` (see use_suite).
apt_options=()
download_package() {
    local package=$1 folder=$2 download
    download=$(mktemp -d)
    (cd "$download" && apt-get "${apt_options[@]}" -q download -o APT::Sandbox::User=root "$package" >log 2>&1) || {
        cat "$download/log" >&2
        rm -rf "$download"
        die "cannot download the package $package; is it in this machine's apt sources? (apt-cache policy $package)"
    }
    mkdir -p "$folder"
    dpkg -x "$download"/*.deb "$folder"
    rm -rf "$download"
}

# use_suite SUITE FOLDER: from here on download_package looks in that suite of this machine's own Debian archive (such as
# bookworm-backports), whether or not it is among its sources. FOLDER keeps the lists.
use_suite() {
    local suite=$1 folder=$2 keys=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$folder/lists/partial"
    debian_sources | awk -v suite="$suite" -v codename="$(debian_codename)" -v keys="$keys" \
        '$3 == codename { print $1, "[signed-by=" keys "]", $2, suite, $4 }' >"$folder/sources.list"
    apt_options=(-o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$folder/lists" -o APT::Sandbox::User=root)
    apt-get "${apt_options[@]}" -q update >"$folder/log" 2>&1 || {
        cat "$folder/log" >&2
        die "there is no suite $suite in this machine's Debian archive"
    }
}

# debian_sources: this machine's own Debian entries as one-line sources; what others have added is left out.
debian_sources() {
    apt-get indextargets --format "deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" 'Created-By: Packages' 'Origin: Debian' |
        sort -u
}

# debian_codename: bookworm, trixie, …
debian_codename() { (. /etc/os-release && echo "$VERSION_CODENAME"); }
