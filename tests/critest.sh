#!/bin/bash
# The upstream suite on a daemon of its own: tests/critest.sh [crun|runc] [more flags of critest].
# One spec is left out: its image's digest is of upstream's own bytes, which cannot be rebuilt.
set -u
RUNTIME=${1:-crun}
if [ -z "${CRICKET_LANE:-}" ]; then
    CRICKET_LANE=1 exec "$(dirname "$0")/in-lane.sh" "$0" "$@"
fi
[ $# -gt 0 ] && shift
# shellcheck source=tests/node.sh
. "$(dirname "$0")/node.sh"
trap node_destroy EXIT
node_prepare && node_start || exit 1
LOG=$TOP/target/critest-$RUNTIME.log
mkdir -p "$TOP/target"
"$TOP/critest/bin/critest" --runtime-endpoint "unix://$SOCKET" --image-endpoint "unix://$SOCKET" \
    --ginkgo.no-color --ginkgo.json-report "$NODE/report.json" --ginkgo.skip "public image with digest" "$@" >"$LOG" 2>&1 </dev/null
cp "$NODE/logs/daemon" "$TOP/target/critest-$RUNTIME.daemon.log"
echo "failed:"
sed -n '/^Summarizing/,/^Ran /s/^ *\[FAIL\] //p' "$LOG" | sed 's/^/  /'
echo "skipped, with the reason that the suite gives:"
jq -r '.[].SpecReports[] | select(.State == "skipped") |
    if .Failure.Message then .Failure.Message else "left out by name: " + (.ContainerHierarchyTexts + [.LeafNodeText] | join(" ")) end' \
    "$NODE/report.json" | sort | uniq -c | sed 's/^/  /'
counts=$(sed -n 's/.* \([0-9]*\) Passed | \([0-9]*\) Failed | [0-9]* Pending | \([0-9]*\) Skipped.*/\1 passed, \2 failed, \3 skipped/p' "$LOG" | tail -n 1)
echo "critest with $RUNTIME: ${counts:-did not come to its end, see $LOG}"
[[ $counts == *" 0 failed"* ]]
