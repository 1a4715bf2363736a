#!/bin/bash
# A real kubelet, without a cluster, drives cricket: the life of pods of many kinds, what the kubelet's own API says of them,
# restarts of either under the other, and at the end the leak ledger.
#
#   tests/kubelet.sh [crun|runc]        make kubelet-test builds what it needs
#
# Runs in a lane (in-lane.sh), so it touches nothing of the machine. Each check is one line; the last line has the counts.
# KEEP=DIR keeps the logs there. FIGURES=no leaves out the measurements.
set -u
RUNTIME=${1:-crun}
if [ -z "${CRICKET_LANE:-}" ]; then
    exec "$(dirname "$0")/in-lane.sh" "$0" "$@"
fi
HERE=$(dirname "$0")
# shellcheck source=tests/node.sh
. "$HERE/node.sh"
# shellcheck source=tests/ledger.sh
. "$HERE/ledger.sh"
# shellcheck source=tests/checks.sh
. "$HERE/checks.sh"
# shellcheck source=tests/kubelet/node.sh
. "$HERE/kubelet/node.sh"
# shellcheck source=tests/kubelet/pods.sh
. "$HERE/kubelet/pods.sh"
# shellcheck source=tests/kubelet/streams.sh
. "$HERE/kubelet/streams.sh"
# shellcheck source=tests/kubelet/restarts.sh
. "$HERE/kubelet/restarts.sh"
# shellcheck source=tests/kubelet/figures.sh
. "$HERE/kubelet/figures.sh"

finish() {
    [ -n "${ENDED:-}" ] || bad "the script comes to its end" "it was left before"
    if [ -n "${KEEP:-}" ] && [ -n "${NODE:-}" ]; then
        mkdir -p "$KEEP" && cp "$NODE"/logs/* "$KEEP/"
    fi
    if [ $FAILED -gt 0 ] && [ -n "${NODE:-}" ]; then
        echo "the end of the kubelet's log:"
        tail -n 20 "${KUBELET_LOG:-/dev/null}"
        echo "the end of the daemon's log:"
        tail -n 20 "$NODE/logs/daemon"
    fi
    kubelet_stop KILL
    node_destroy
    echo "kubelet with $RUNTIME: $PASSED passed, $FAILED failed, 0 skipped"
    [ $FAILED = 0 ]
}

# nothing_left: the runtime has no pod and no container. (The kubelet removes sandboxes once a minute.)
nothing_left() { [ -z "$(crictl pods -q)$(crictl ps -aq)" ]; }

# The first pod: the kubelet pulls the images. What it makes for good, such as the bridge, is there before the ledger.
warm() {
    manifest warm
    manifest small warm-small
    until_so "the images are pulled and the pod is Ready" 120 warm is_ready warm
    until_so "a second one too" 60 warm-small is_ready warm-small
    is "the images that it pulled are there" 2 "$(crictl images -q | wc -l)"
    unmanifest warm
    unmanifest warm-small
    until_so "the pod is gone from the kubelet" 60 warm is_gone warm
    until_so "and from the runtime" 150 warm nothing_left
    kubelet_stop
}

# tear_down [restart]: with a restart of the daemon before the ledger is compared, where it began with one. (A keeper without
# anything to keep ends with its daemon, so the next daemon starts another, and holds a descriptor of that.)
tear_down() {
    local file
    ROUND="end of ${ROUND}"
    for file in "$NODE"/manifests/*.yaml; do unmanifest "$(basename "$file" .yaml)"; done
    no_pods() { [ "$(api /pods | jq '.items // [] | length')" = 0 ]; }
    until_so "all pods are gone from the kubelet" 90 none no_pods
    until_so "and from the runtime" 150 none nothing_left
    is "no volume stays mounted" "" "$(awk -v root="$NODE/kubelet/pods/" 'index($5, root) { print $5 }' /proc/self/mountinfo)"
    is "no cgroup of a pod is left" "" "$(find /sys/fs/cgroup -path "*$PARENT*/pod*" -type d 2>/dev/null)"
    kubelet_stop
    [ "${1:-}" != restart ] || { node_stop; node_start || bad "start the daemon again" ""; }
    wait_for 120 unconnected || bad "the daemon's connections end" "$(ss -Htnp)"
    holds "the ledger is as before" ledger_same "$NODE/logs/ledger.before"
}

# unconnected: the daemon has no connection. (One to a registry stays open for a while after its last use.)
unconnected() { ! ss -Htnp | grep -q "pid=$DAEMON_PID,"; }

# settle_ledger: the ledger that the next round is compared with, once ten looks at it agree. (A daemon that has just started
# still asks programs for their versions; a connection of a kubelet that has just ended is still being closed.)
settle_ledger() {
    local last=$NODE/logs/ledger.last agreed=0
    wait_for 120 unconnected || bad "the daemon's connections end" "$(ss -Htnp)"
    ledger_sorted >"$NODE/logs/ledger.before"
    settled() {
        mv "$NODE/logs/ledger.before" "$last" && ledger_sorted >"$NODE/logs/ledger.before"
        if cmp "$last" "$NODE/logs/ledger.before"; then agreed=$((agreed + 1)); else agreed=0; fi
        [ $agreed -ge 10 ]
    }
    wait_for 60 settled || bad "the ledger settles" "$(diff "$last" "$NODE/logs/ledger.before")"
}

begin() { kubelet_start || { bad "start the kubelet" ""; exit 1; }; }

trap "finish || exit 1" EXIT
node_prepare && kubelet_prepare || { bad "prepare a node" ""; exit 1; }
node_start || { bad "start the daemon" ""; exit 1; }
kubelet_config '{}'
begin
ROUND="warm: "
warm
settle_ledger
begin
[ "${FIGURES:-}" = no ] || figures
ROUND="pods: "
all_pods
ROUND="streams: "
streams
quiet
ROUND="failures: "
failures
tear_down
ROUND="restarts: "
# In its middle are daemons that took everything over, so its ledger is that of a second daemon.
node_stop
node_start || { bad "start the daemon again" ""; exit 1; }
settle_ledger
kubelet_config '{"PodAndContainerStatsFromCRI": true}'
begin
for name in $STANDING; do manifest "$name"; done
for name in $STANDING; do until_so "$name is Ready" 90 "$name" is_ready "$name"; done
cri_statistics
restarts
tear_down restart
ROUND=
node_stop
is "SIGTERM ends the daemon with code 0" 0 $?
ENDED=yes
