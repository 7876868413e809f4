#!/usr/bin/env bash
# Asks the HTTP API everything that its own /openapi.json allows, and much that it does not:
# no answer may be a 5xx, and each must be as the document says.
# usage: scripts/fuzz-api.sh [SECONDS [arguments of `schemathesis run` …]]
#
# What it submits is random, so it is run by nobody who could do harm: the server and the
# fuzzer are alone in a network namespace, and the server runs as `nobody` where that can be
# had. Reports go to .cache/fuzz-api.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

seconds=${1:-120}
shift || true
venv=.cache/schemathesis
meepo=${MEEPO_BIN:-${CARGO_TARGET_DIR:-target}/debug/meepo}

if [ -z "${MEEPO_FUZZ_ALONE:-}" ]; then
    if [ ! -x $venv/bin/schemathesis ]; then
        python3 -m venv $venv
        $venv/bin/pip --quiet install 'schemathesis>=4,<5'
    fi
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then as_root=(--map-root-user); fi
    exec env MEEPO_FUZZ_ALONE=1 unshare "${as_root[@]}" --net --kill-child "$0" "$seconds" "$@"
fi

ip link set lo up
data=$(mktemp -d)
report=$root/.cache/fuzz-api
mkdir -p "$report"
meepo=$(realpath "$meepo")
venv=$(realpath $venv)
nobody=()
if chown 65534:65534 "$data" 2>/dev/null; then
    nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
# Not from here: what jobs write into their working directory stays there.
cd "$data"
env -i PATH="$PATH" HOME="$data" "${nobody[@]}" "$meepo" server --data-dir "$data/meepo" \
    >"$report/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null; rm -rf "$data"' EXIT
cd "$report"

ready() {
    "$venv/bin/python" -c 'import urllib.request as r; r.urlopen("http://127.0.0.1:7600/readyz", timeout=1)'
}
for _ in $(seq 100); do
    if ready 2>/dev/null; then break; fi
    if ! kill -0 $server 2>/dev/null; then
        echo "the server did not start, see $report/server.log" >&2
        exit 1
    fi
    sleep 0.2
done

# Streams do not end by themselves, so they are left out.
checks=not_a_server_error,status_code_conformance,content_type_conformance
"$venv/bin/schemathesis" run http://127.0.0.1:7600/openapi.json \
    --checks $checks,response_schema_conformance \
    --exclude-path /v1/events --exclude-path-regex '^/v1/tasks/[^/]*/events$' \
    --exclude-path /v1/exec/stream \
    --max-time "$seconds" --request-timeout 30 --continue-on-failure "$@" | tee output.txt
