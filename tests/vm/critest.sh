#!/bin/bash
# Inside the guest: critest on the installed service, compared with critest/expected/vm-<runtime>.txt.
set -u
RUNTIME=$1
TOP=/payload/top
# shellcheck source=tests/expectations.sh
. "$TOP/tests/expectations.sh"
REPORT=/results/critest-$RUNTIME.json
for _ in $(seq 300); do crictl version >/dev/null 2>&1 && break; sleep 0.2; done
cd /tmp || exit 1
CANNOT=$(cannot "$TOP/critest/expected/vm-$RUNTIME.txt")
timeout -k 30 3500 "$TOP/critest/bin/critest" --runtime-endpoint unix:///run/cricket/cricket.sock --image-endpoint unix:///run/cricket/cricket.sock \
    --ginkgo.no-color --ginkgo.json-report "$REPORT" --ginkgo.skip "public image with digest" \
    ${CANNOT:+--ginkgo.skip "$CANNOT"} ${FLAGS:-} >"/results/critest-$RUNTIME.output" 2>&1 </dev/null
if ! jq -e . "$REPORT" >/dev/null 2>&1; then
    tail -n 20 "/results/critest-$RUNTIME.output"
    echo "critest did not come to its end: 0 passed, 1 failed, 0 skipped"
    exit 1
fi
verdict "$REPORT" "$TOP/critest/expected/vm-$RUNTIME.txt" '^'
