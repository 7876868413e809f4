#!/usr/bin/env bash
# The linker of `make dist`: cc, which puts the functions that an idle worker uses next to each
# other, so that less of the program is in memory. The arguments are cc's. Which functions these
# are says scripts/link-order.txt, made by scripts/link-order.sh; without the hashes at their
# ends, which differ from one compiler to the next. What is not found there, and every other
# linker, links as ever.
set -euo pipefail
list="$(dirname "${BASH_SOURCE[0]}")/link-order.txt"

inputs=() program=no lld=no
for arg in "$@"; do
    case $arg in
    *.o | *.rlib | *.a) if [[ -f $arg ]]; then inputs+=("$arg"); fi ;;
    -fuse-ld=lld) lld=yes ;;
    -pie | -static-pie | -no-pie) program=yes ;;
    -shared | @*) lld=no && break ;;
    esac
done
if [[ $lld = no || $program = no || ! -r $list ]] || ! command -v nm >/dev/null; then
    exec cc "$@"
fi

order=$(mktemp)
trap 'rm -f "$order"' EXIT
# What nm cannot read has nothing to be put in order.
nm --defined-only -P "${inputs[@]}" 2>/dev/null |
    awk 'NR == FNR { place[$1] = NR; next }
        $2 ~ /^[tTwW]$/ {
            name = $1
            sub(/17h[0-9a-f]+E(\.llvm\.[0-9]+)?$/, "", name)
            if (name in place && !seen[$1]++) print place[name], $1
        }' "$list" - |
    sort -n | cut -d ' ' -f 2 >"$order" || true
cc "$@" "-Wl,--symbol-ordering-file=$order" -Wl,--no-warn-symbol-ordering
