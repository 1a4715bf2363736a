#!/bin/bash
# Measures a release build against the raw runtime. tests/bench.sh [crun|runc]; ROUNDS and PODS change the numbers.
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
"$TOP/critest/bin/bench" -socket "$SOCKET" -state "$NODE/state" -runtime "$RUNTIME" -handler "$RUNTIME" \
    -daemon "$DAEMON_PID" -keeper "$(node_keeper)" -rounds "${ROUNDS:-50}" -pods "${PODS:-50}"
