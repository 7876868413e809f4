#!/usr/bin/env bash
# Runs the targets of fuzz/ one after the other with cargo-fuzz.
# usage: scripts/fuzz.sh [SECONDS [TARGET…]]     60 seconds each, all targets unless named
#
# What is found stands in fuzz/artifacts/TARGET; put it into fuzz/seeds/TARGET, where the
# tests replay it for ever, and mend it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cd fuzz/seeds && ls)
fi

PATH=$root/.cache/cargo-fuzz/bin:$PATH
if ! have cargo-fuzz; then
    scripts/cargo.sh install --quiet --root .cache/cargo-fuzz cargo-fuzz
fi
# Sanitizers are for nightly compilers; another one is told to take itself for one.
toolchain=()
if have rustup && RUSTUP_AUTO_INSTALL=0 rustup run nightly rustc --version >/dev/null 2>&1; then
    toolchain=(+nightly)
else
    export RUSTC_BOOTSTRAP=1
fi

for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target"
    echo "==> $target, $seconds s"
    cargo "${toolchain[@]}" fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
done
