#!/usr/bin/env bash
# Makes scripts/link-order.txt anew: which functions a worker uses that starts, is given 1,000
# jobs and does nothing. Needs valgrind, etcd and a worker built in release:
#   scripts/link-order.sh target/release/meepo-worker
# Worth the while when much of what a worker does has changed; see docs/benchmarks.md.
set -euo pipefail
worker=$(realpath "${1:?the path of a worker built in release}")
list="$(dirname "$(realpath "${BASH_SOURCE[0]}")")/link-order.txt"
dir=$(mktemp -d)
pids=()
cleanup() {
    if ((${#pids[@]})); then kill "${pids[@]}" 2>/dev/null || true; fi
    wait
    rm -rf "$dir"
}
trap cleanup EXIT
client=http://127.0.0.1:${MEEPO_ORDER_PORT:-23790} peer=http://127.0.0.1:23791
metrics=127.0.0.1:23792
cd "$dir"

etcd --data-dir etcd --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
    --initial-cluster "default=$peer" >etcd.log 2>&1 &
pids+=($!)
export ETCDCTL_API=3
until etcdctl --endpoints "$client" endpoint health >/dev/null 2>&1; do sleep 0.2; done
valgrind --tool=callgrind --demangle=no --compress-strings=no --callgrind-out-file=calls \
    "$worker" run --etcd "$client" --node 127.0.0.2 --data-dir data --metrics "$metrics" \
    --pid-file pid >worker.log 2>&1 &
valgrind=$!
pids+=("$valgrind")
holds() { curl -fs "http://$metrics/metrics" | grep -qx "meepo_worker_jobs $1"; }
until holds 0; do sleep 1; done
for n in $(seq 1000); do
    etcdctl --endpoints "$client" put "/cron/jobs/127.0.0.2/idle-$n" \
        "{\"cmd\":\"date\",\"express\":\"$((n % 60)) $((n % 24)) 29 2 *\"}" >/dev/null
done
until holds 1000; do sleep 1; done
# Leases, heartbeats, comparisons.
sleep 60
kill "$(cat pid)"
wait "$valgrind" || true

# First those of whose instances nearly all are used.
awk 'FNR == NR { if (sub(/^fn=/, "")) { sub(/'"'"'[0-9]+$/, ""); used[$0] = 1 }; next }
    NF == 4 && $3 ~ /^[tTwW]$/ {
        name = $4
        sub(/17h[0-9a-f]+E(\.llvm\.[0-9]+)?$/, "", name)
        size[name] += $2
        if (!(name in first)) first[name] = $1
        if ($4 in used) uses[name] += $2
    }
    END { for (name in uses) if (size[name] > 0) printf "%d %s %s\n", 10 * uses[name] / size[name], first[name], name }' \
    calls <(nm -S -t d "$worker") |
    sort -k1,1nr -k2,2n | cut -d ' ' -f 3 >"$list.new"
mv "$list.new" "$list"
wc -l "$list"
