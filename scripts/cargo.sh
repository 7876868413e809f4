#!/usr/bin/env bash
# cargo, from a toolchain new enough for this workspace. The arguments are cargo's.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if ! find_cargo; then
    echo "no Rust toolchain of version $min_rust or later; scripts/install-deps.sh run installs one or says how" >&2
    exit 1
fi
exec "${cargo[@]}" "$@"
