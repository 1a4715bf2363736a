# Sourced beside node.sh: a kubelet in standalone mode on the node in $NODE. It takes its pods from files below
# $NODE/manifests and talks on the lane's own loopback, so its usual ports are free.
# shellcheck shell=bash

KUBELET=${KUBELET:-$TOP/critest/bin/kubelet}
KUBELETCLIENT=${KUBELETCLIENT:-$TOP/critest/bin/kubeletclient}
API=https://127.0.0.1:10250
PODS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/pods
KUBELET_PID=
# Each start of the kubelet has a log of its own.
KUBELET_STARTS=0

kubelet_prepare() {
    local file folder
    for file in "$KUBELET" "$KUBELETCLIENT"; do
        [ -x "$file" ] || { echo "$0: $file is missing: run make kubelet tools" >&2; return 2; }
    done
    # Folders whose names are fixed in the kubelet are the lane's own.
    mount -t tmpfs -o mode=755 lane-lib /var/lib
    mount -t tmpfs -o mode=755 lane-log /var/log
    mkdir -p /var/lib/kubelet "$NODE"/{manifests,kubelet,pod-logs,share,http}
    # The root of the kubelet's cgroups, with what version 1 wants before a task may enter.
    for folder in /sys/fs/cgroup/*/; do
        [ -L "${folder%/}" ] || mkdir -p "$folder$PARENT"
    done
    for file in cpus mems; do
        for folder in /sys/fs/cgroup/cpuset "/sys/fs/cgroup/cpuset$PARENT"; do
            [ -n "$(cat "$folder/cpuset.$file")" ] || cat "${folder%/*}/cpuset.$file" >"$folder/cpuset.$file"
        done
    done
}

# kubelet_config GATES: its configuration, with these feature gates as JSON.
kubelet_config() {
    cat >"$NODE/kubelet.json" <<EOF
{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
 "containerRuntimeEndpoint": "unix://$SOCKET", "staticPodPath": "$NODE/manifests", "podLogsDir": "$NODE/pod-logs",
 "volumePluginDir": "$NODE/kubelet/volumeplugins", "address": "127.0.0.1", "healthzBindAddress": "127.0.0.1",
 "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}}, "authorization": {"mode": "AlwaysAllow"},
 "failCgroupV1": false, "failSwapOn": false, "cgroupRoot": "$PARENT", "oomScoreAdj": 0, "registerNode": false,
 "enforceNodeAllocatable": [], "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
 "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
 "containerLogMaxSize": "20Ki", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s",
 "allowedUnsafeSysctls": ["net.*"], "featureGates": $1}
EOF
}

# kubelet_start: starts it and waits until it has seen the runtime and its pods' last states.
kubelet_start() {
    KUBELET_STARTS=$((KUBELET_STARTS + 1))
    KUBELET_LOG=$NODE/logs/kubelet.$KUBELET_STARTS
    "$KUBELET" --config "$NODE/kubelet.json" --root-dir "$NODE/kubelet" --cert-dir "$NODE/kubelet/pki" \
        --hostname-override node --node-ip 192.0.2.2 -v "${KUBELET_VERBOSE:-2}" >"$KUBELET_LOG" 2>&1 </dev/null &
    KUBELET_PID=$!
    if ! wait_for 60 curl -sfo /dev/null http://127.0.0.1:10248/healthz || ! wait_for 60 relisted 1; then
        echo "$0: the kubelet is not healthy; the end of its log:" >&2
        tail -n 30 "$KUBELET_LOG" >&2
        return 1
    fi
}

# kubelet_stop [SIGNAL]
kubelet_stop() {
    [ -n "$KUBELET_PID" ] || return 0
    kill "-${1:-TERM}" "$KUBELET_PID" 2>/dev/null
    wait "$KUBELET_PID" 2>/dev/null
    KUBELET_PID=
}

api() { curl -sk --max-time 30 "$API$1"; }

# manifest NAME [AS]: has the kubelet run the pod of pods/NAME.yaml, with placeholders filled in. The file appears whole.
manifest() {
    local as=${2:-$1}
    sed -e "s|@NODE@|$NODE|g" -e "s|@NAME@|$as|g" "$PODS/$1.yaml" >"$NODE/manifests/.$as"
    mv "$NODE/manifests/.$as" "$NODE/manifests/$as.yaml"
}
unmanifest() { rm -f "$NODE/manifests/$1.yaml"; }

# pod NAME FILTER: what jq's filter makes of the pod as the kubelet shows it; nothing when there is no such pod.
pod() { api /pods | jq -r --arg name "$1-node" ".items[]? | select(.metadata.name == \$name) | $2"; }
# container NAME CONTAINER FILTER: the same of the status of one container, of whichever kind.
container() {
    pod "$1" "[.status.containerStatuses[]?, .status.initContainerStatuses[]?][] | select(.name == \"$2\") | $3"
}
condition() { pod "$1" ".status.conditions[]? | select(.type == \"$2\") | .status"; }
is_ready() { [ "$(condition "$1" Ready)" = True ]; }
is_phase() { [ "$(pod "$1" .status.phase)" = "$2" ]; }
# The kubelet's list drops a pod when its file goes, long before its containers have ended.
is_gone() { [ -z "$(pod "$1" .metadata.name)$(crictl ps -q --label "io.kubernetes.pod.name=$1-node")" ]; }
# state NAME CONTAINER STATE KEY VALUE: its state is that, for that reason (or another key).
is_in() { [ "$(container "$1" "$2" ".state.$3.$4")" = "$5" ]; }

# until_so WHAT SECONDS POD COMMAND...: a check that waits, and shows the pod when it waited in vain.
until_so() {
    local what=$1 seconds=$2 name=$3
    shift 3
    if wait_for "$seconds" "$@"; then good "$what"; else bad "$what" "not within $seconds s: $*"$'\n'"$(pod "$name" '.status | tojson')"; fi
}

# ask KIND POD CONTAINER [FLAGS] -- COMMAND...: exec or attach through the kubelet.
ask() {
    local kind=$1 name=$2 container=$3 flags=()
    shift 3
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    timeout 60 "$KUBELETCLIENT" "$kind" "${flags[@]}" "$API/$kind/default/$name-node/$container" "$@"
}
# run POD CONTAINER COMMAND...: runs it by ExecSync, with what it printed, or the error of one that failed. The kubelet
# splits the command at its blanks.
run() {
    local name=$1 container=$2 text
    shift 2
    text=$(curl -sk --max-time 30 -X POST --url-query "cmd=$*" "$API/run/default/$name-node/$container")
    case $text in \"*) jq -r @base64d <<<"$text" ;; *) echo "$text" ;; esac
}
logs() { api "/containerLogs/default/$1-node/$2${3:-}"; }

# metric NAME [LABELS]: the sum of the kubelet's metrics of that name whose labels have that text in them.
metric() { api /metrics | awk -v name="$1" -v labels="${2:-}" '{ at = $1; sub(/\{.*/, "", at) } at == name && index($1, labels) { sum += $2 } END { printf "%.9g\n", sum }'; }
relists() { metric kubelet_pleg_relist_duration_seconds_count; }
# relisted COUNT: the kubelet has asked the runtime for all pods so many times since its start.
relisted() { [ "$(relists)" -ge "$1" ]; }

# ids: one line for each container that the runtime has, with all that must not change while nothing happens.
ids() {
    crictl ps -a -o json | jq -r '.containers[] | [.labels["io.kubernetes.pod.name"], .metadata.name, .id, .metadata.attempt, .state] | @tsv' | sort
}
# standing: the same as the kubelet shows it, with the times of the last changes of readiness.
standing() {
    api /pods | jq -r '.items[] | .metadata.name as $pod |
        ([.status.containerStatuses[]?, .status.initContainerStatuses[]?][] | [$pod, .name, .containerID, .restartCount, .ready, .state.running.startedAt // .state.terminated.finishedAt]),
        (.status.conditions[]? | select(.type == "Ready" or .type == "ContainersReady") | [$pod, .type, .status, .lastTransitionTime]) | @tsv' | sort
}
