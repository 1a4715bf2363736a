#!/bin/bash
# The upstream suite on a daemon of its own, its outcome compared with critest/expected/<lane>-<runtime>.txt:
#
#   tests/critest.sh [crun|runc|youki] [flags of critest]
#
# REPEAT=5 runs it five times on the same daemon, which must be as good at the end as at the start. With --parallel N the
# suite starts critest/bin/ginkgo. With -benchmark every benchmark must run to its end. With a focus of the caller's the skips
# are not compared.
# One spec is left out everywhere: its image's digest is of upstream's own bytes, which cannot be rebuilt.
set -u
RUNTIME=${1:-crun}
if [ -z "${CRICKET_LANE:-}" ]; then
    exec "$(dirname "$0")/in-lane.sh" "$0" "$@"
fi
[ $# -gt 0 ] && shift
# shellcheck source=tests/node.sh
. "$(dirname "$0")/node.sh"
# shellcheck source=tests/expectations.sh
. "$(dirname "$0")/expectations.sh"

MODE=
EXPECTED=$TOP/critest/expected/${EXPECTED_LANE:-host}-$RUNTIME.txt
# Benchmarks are left out of a plain run by the suite itself, in which it is not asked for them.
PATTERN='^'
MORE=()
for flag in "$@"; do
    case $flag in
    -benchmark | --benchmark)
        MODE=$MODE-benchmark
        PATTERN=benchmark
        EXPECTED=/dev/null
        MORE+=(--benchmarking-params-file "$TOP/critest/benchmark.yaml" --benchmarking-output-dir "$TOP/target/critest-benchmark-$RUNTIME")
        ;;
    --parallel* | -parallel*) MODE=$MODE-parallel ;;
    --websocket-exec | -websocket-exec*) MODE=$MODE-websocket ;;
    --ginkgo.focus* | --ginkgo.label* | -ginkgo.focus* | -ginkgo.label*) EXPECTED=- ;;
    esac
done
[ "$EXPECTED" = - ] || [ -e "$EXPECTED" ] || { echo "$0: $EXPECTED is missing: nobody has said what $RUNTIME may skip" >&2; exit 2; }
LOG=$TOP/target/critest-$RUNTIME$MODE.log
CANNOT=
case $EXPECTED in - | /dev/null) ;; *) CANNOT=$(cannot "$EXPECTED") ;; esac

trap node_destroy EXIT
if [ "$RUNTIME" = youki ]; then
    # On cgroup v1, youki 0.7 looks its pid inside of a pod's pid namespace up in the /proc of the host and fails where nobody has
    # that pid (libcontainer, mount_cgroup_v1). On a machine the low pids are kernel threads; in the lane they are these.
    echo 1 >/proc/sys/kernel/ns_last_pid
    for ((n = 0; n < 300; n++)); do sleep infinity & done
fi
node_prepare && node_start || exit 1
mkdir -p "$TOP/target"
BENCHMARKS=$TOP/target/critest-benchmark-$RUNTIME
rm -rf "$BENCHMARKS"
# The suite writes its measurements only into a folder that is there.
case $MODE in *benchmark*) mkdir "$BENCHMARKS" ;; esac
# Where a parallel run's report lands is given by the temporary folder, see report.
export TMPDIR=$NODE/tmp PATH=$TOP/critest/bin:$PATH

# samples: whether each benchmark measured as often as its parameters say; one that gives up on its own clock passes all the same.
samples() {
    local file wanted
    for file in pod:podsNumber container:containersNumber image_lifecycle:imagesNumber image_listing:imagesNumber; do
        wanted=$(sed -n "s/^${file#*:}: //p" "$TOP/critest/benchmark.yaml")
        jq -e --argjson wanted "$wanted" '.datapoints | length == $wanted' "$BENCHMARKS/${file%:*}_benchmark_data.json" >/dev/null && continue
        echo "  FAIL  ${file%:*}: not $wanted samples in $BENCHMARKS"
        return 1
    done
}

# report: the file with the last run's report. ginkgo's own program puts it beside the link to critest that the suite made.
report() { find "$NODE/tmp" -maxdepth 2 -name report.json | head -n 1; }

run_once() {
    local started=$SECONDS file
    rm -rf --one-file-system "$NODE/tmp"
    mkdir -p "$NODE/tmp"
    (cd "$NODE/tmp" && exec "$TOP/critest/bin/critest" --runtime-endpoint "unix://$SOCKET" --image-endpoint "unix://$SOCKET" \
        --ginkgo.no-color --ginkgo.json-report report.json --ginkgo.skip "public image with digest" \
        ${CANNOT:+--ginkgo.skip "$CANNOT"} \
        ${MORE[@]+"${MORE[@]}"} "$@") >"$LOG" 2>&1 </dev/null
    file=$(report)
    if [ -z "$file" ] || ! jq -e . "$file" >/dev/null 2>&1; then
        tail -n 20 "$LOG" | sed 's/^/  | /'
        COUNTS="did not come to its end, see $LOG"
        return 1
    fi
    cp "$file" "${LOG%.log}.json"
    verdict "$file" "$EXPECTED" "$PATTERN" >"$NODE/verdict"
    local code=$?
    sed '$d' "$NODE/verdict"
    COUNTS=$(tail -n 1 "$NODE/verdict")
    case $MODE in *benchmark*) samples || code=1 ;; esac
    TIME=$((SECONDS - started))
    return $code
}

CODE=0
for round in $(seq "${REPEAT:-1}"); do
    run_once "$@" || { CODE=1; cp "$LOG" "${LOG%.log}.failed-$round.log"; }
    [ "${REPEAT:-1}" = 1 ] || echo "round $round: $COUNTS (${TIME:-0} s)"
done
cp "$NODE/logs/daemon" "${LOG%.log}.daemon.log"
if [ $CODE = 0 ]; then rm -f "${LOG%.log}".failed-*.log; fi
if [ "$EXPECTED" != - ] && [ "$EXPECTED" != /dev/null ]; then
    echo "skipped, as expected:"
    specs "${LOG%.log}.json" '^skipped$' | while IFS= read -r name; do
        grep -F -- "$name — " "$EXPECTED" | head -n 1
    done | sed 's/.* — //' | sort | uniq -c | sed 's/^/  /'
fi
echo "critest with $RUNTIME${MODE:+ (${MODE#-})}: $COUNTS"
exit $CODE
