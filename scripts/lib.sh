# shellcheck shell=bash
# Shared by the scripts beside it: finding a Rust toolchain that is new enough.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The one place that states the version is the workspace manifest.
min_rust=$(sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' "$root/Cargo.toml")

# rustup's folder is missing from PATH until the next login after installing it,
# and ldconfig lives where ordinary users do not look.
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/sbin:/sbin

have() { command -v "$1" >/dev/null 2>&1; }

# Version of the rustc that the given command prefix starts; empty when there is none.
rust_version() {
    "$@" rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p' || true
}

new_enough() {
    [ -n "$1" ] && printf '%s\n%s\n' "$min_rust" "$1" | sort -V -C
}

# shellcheck disable=SC2034 # for the script that reads this file
# Sets the array `cargo` to the command that starts a cargo of at least min_rust:
# the plain one, or rustup's when the default toolchain is too old.
find_cargo() {
    cargo=(cargo)
    if have cargo && new_enough "$(rust_version env)"; then
        return 0
    fi
    cargo=(rustup run "$min_rust" cargo)
    have rustup && new_enough "$(rust_version env RUSTUP_AUTO_INSTALL=0 rustup run "$min_rust")"
}
