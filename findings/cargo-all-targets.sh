#!/usr/bin/env bash
# `cargo check --all-targets` does not look at all targets: one with `test = false` in Cargo.toml is left out, and so it is by clippy and by `cargo test --all-targets`.
#
# Software: cargo 1.95.0, by rustup if it is not the one that is here. No ashlar, no crate.
# Behaviour: a `[[test]]` that is `test = false`, so that `cargo test` does not run it, is not compiled by --all-targets, and also not if --test names it beside that: the
# name is passed over without a word. It is compiled where --test stands alone, with the name or a pattern.
# Wrong guess: "all targets are all, and a target that is named comes on top". A test that a script runs then breaks unseen.
# Output seen (2026-11-28):
#   --all-targets: compiles
#   --all-targets --test by_a_script: compiles
#   --test *: does not compile
# Ends with 0 if it is so still, with 1 if not.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/src" "$dir/tests"
touch "$dir/src/lib.rs"
echo 'compile_error!("somebody looked");' >"$dir/tests/by_a_script.rs"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "targets"
edition = "2024"

[[test]]
name = "by_a_script"
test = false

[workspace]
TOML
cargo=(cargo)
[[ $(cargo --version) == "cargo 1.95.0 "* ]] || cargo=(rustup run --install 1.95.0 cargo)
unset CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR
cd "$dir"

check() {
    if "${cargo[@]}" check --quiet "$@" >check.txt 2>&1; then
        echo "$*: compiles"
    else
        grep -q 'somebody looked' check.txt
        echo "$*: does not compile"
    fi
}
seen=$(check --all-targets && check --all-targets --test by_a_script && check --test '*')
echo "$seen"
[[ $seen == "--all-targets: compiles
--all-targets --test by_a_script: compiles
--test *: does not compile" ]]
