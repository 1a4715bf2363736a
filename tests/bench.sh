#!/bin/bash
# Measures a release build against the raw runtime, and pods' networks in both modes against the host's.
# tests/bench.sh [crun|runc]; ROUNDS, PODS and STANDING (pods of the full node) change the numbers, ONLY=network picks that part.
set -eu
RUNTIME=${1:-crun}
if [ -z "${CRICKET_LANE:-}" ]; then
    exec "$(dirname "$0")/in-lane.sh" "$0" "$@"
fi
CRICKET=${CRICKET:-$(cd "$(dirname "$0")/.." && pwd)/target/release/cricket}
LOG_LEVEL=${LOG_LEVEL:-warn}
# shellcheck source=tests/node.sh
. "$(dirname "$0")/node.sh"
trap node_destroy EXIT
node_prepare
node_start
crictl pull registry.k8s.io/e2e-test-images/busybox:1.29-2 >/dev/null
bench() {
    "$TOP/critest/bin/bench" -socket "$SOCKET" -state "$NODE/state" -runtime "$RUNTIME" -handler "$RUNTIME" \
        -daemon "$DAEMON_PID" -keeper "$(node_keeper)" -rounds "${ROUNDS:-50}" -pods "${PODS:-50}" "$@"
}
[ "${ONLY:-}" = network ] || bench
for mode in cni builtin; do
    node_stop
    sed -i "s/^mode = .*/mode = \"$mode\"/" "$NODE/config.toml"
    node_start
    echo
    bench -network "$mode" -standing "${STANDING:-500}"
done
