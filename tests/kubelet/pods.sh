# Sourced by kubelet.sh: pods of many kinds, and what the kubelet's API and the pods themselves say.
# shellcheck shell=bash

# The pods that stay until the end, and go through the restarts.
STANDING="web init shared host secure talk"

all_pods() {
    local name
    manifest logs
    until_so "logs is Ready" 90 logs is_ready logs
    follow_logs
    # All at once, as on a node that starts.
    for name in $STANDING oom done crash stop stubborn; do manifest "$name"; done
    for name in $STANDING stop stubborn; do until_so "$name is Ready" 90 "$name" is_ready "$name"; done
    web
    init
    shared
    host
    secure
    endings
    deletions
    statistics
    rotation
}

# fetch ADDRESS PORT: the page that a web server has at /.
fetch() { curl -s --max-time 10 "http://$1:$2/"; }

web() {
    local ip text
    ip=$(pod web .status.podIP)
    has "web: the address is of the pod network" 10.88. "$ip"
    is "web: and the sandbox's" "$ip" "$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$(sandbox web)")"
    has "web: nginx answers there" "It works" "$(fetch "$ip" 80)"
    has "web: and at the host port" "It works" "$(fetch 192.0.2.2 18080)"
    is "web: nothing was started again" "0 0" "$(container web nginx .restartCount) $(container web side .restartCount)"
    has "web: the container id has the runtime's name" cricket:// "$(container web side .containerID)"
    is "web: the image is as the pod names it" registry.k8s.io/e2e-test-images/busybox:1.29-2 "$(container web side .image)"
    has "web: the image id is the config's digest" sha256: "$(container web side .imageID)"
    text=$(run web side env)
    has "web: downward API: name" POD_NAME=web-node "$text"
    has "web: downward API: pod address" "POD_IP=$ip" "$text"
    has "web: downward API: host address" HOST_IP=192.0.2.2 "$text"
    has "web: downward API: limit" CPU_LIMIT=500 "$text"
    has "web: downward API: a volume" 'app="web"' "$(run web side cat /info/labels)"
    is "web: downward API: a resource in a volume" 67108864 "$(run web side cat /info/limit)"
    is "web: emptyDir" "written by side" "$(run web side cat /shared/file)"
    has "web: emptyDir of memory is a tmpfs with its limit" "size=8192k" "$(run web side grep -w /memory /proc/mounts)"
    run web side touch /node/from-the-pod >/dev/null
    holds "web: hostPath" test -f "$NODE/share/from-the-pod"
    has "web: the hosts file names the pod" "$ip" "$(run web side cat /etc/hosts)"
    has "web: logs through the kubelet" "started as web-node" "$(logs web side)"
    has "web: a command's exit code is told" "exited with 1" "$(run web side false)"
    is "web: the memory limit is in force" 67108864 "$(limit web side memory memory.limit_in_bytes)"
    is "web: the cpu limit is in force" 50000 "$(limit web side cpu cpu.cfs_quota_us)"
    is "web: limits as the kubelet shows them" "500m 64Mi" \
        "$(container web side '.resources.limits | "\(.cpu) \(.memory)"')"
}

# sandbox POD: the id of its READY sandbox.
sandbox() { crictl pods -q --no-trunc --state Ready --name "^$1-node\$"; }
# limit POD CONTAINER CONTROLLER FILE: what the container's cgroup says.
limit() {
    local id
    id=$(container "$1" "$2" .containerID)
    cat "$(find "/sys/fs/cgroup/$3$PARENT" -type d -name "*${id#cricket://}*" | head -n 1)/$4"
}

init() {
    is "init: init containers, sidecar and main came in order" "first sidecar second main" "$(run init main cat /work/order | tr '\n' ' ' | sed 's/ $//')"
    is "init: the first is Completed" "Completed 0" "$(container init first '.state.terminated | "\(.reason) \(.exitCode)"')"
    is "init: the sidecar runs and is ready" "true true" "$(container init sidecar '"\(.started) \(.ready)"')"
}

shared() {
    local text
    text=$(run shared one ps)
    has "shared: one sees the other" "sleep 3602" "$text"
    is "shared: neither is pid 1" "" "$(awk '$1 == 1 && /sleep/' <<<"$text")"
}

host() {
    has "host: the node's links" uplink0 "$(run host host ip link)"
    has "host: the node's processes" kubelet "$(run host host ps)"
}

secure() {
    local text
    is "secure: the user and the groups" "uid=1234 gid=2345 groups=2345,3456,4567" "$(run secure secure id)"
    text=$(run secure secure cat /proc/self/status)
    has "secure: no capability" "CapEff:0000000000000000" "$(tr -d '\t' <<<"$text")"
    has "secure: none in the bounding set" "CapBnd:0000000000000000" "$(tr -d '\t' <<<"$text")"
    has "secure: no new privileges" "NoNewPrivs:1" "$(tr -d '\t' <<<"$text")"
    has "secure: seccomp" "Seccomp:2" "$(tr -d '\t' <<<"$text")"
    has "secure: the root is read-only" "Read-only file system" "$(run secure secure touch /x)"
    is "secure: the volume is the group's" "" "$(run secure secure touch /work/x)"
    is "secure: the sysctl is set" "20000 30000" "$(run secure secure cat /proc/sys/net/ipv4/ip_local_port_range | tr '\t' ' ')"
    is "secure: the kubelet shows the user" "1234 2345" "$(container secure secure '.user.linux | "\(.uid) \(.gid)"')"
}

endings() {
    until_so "oom: the pod has Failed" 60 oom is_phase oom Failed
    is "oom: out of memory" "OOMKilled 137" "$(container oom oom '.state.terminated | "\(.reason) \(.exitCode)"')"
    until_so "done: the pod has Succeeded" 60 "done" is_phase "done" Succeeded
    is "done: Completed, with its message" "Completed 0 all is done" \
        "$(container "done" "done" '.state.terminated | "\(.reason) \(.exitCode) \(.message)"')"
    is "done: both streams are in its log, and it can still be read" "to stderr to stdout" "$(logs "done" "done" | sort | tr '\n' ' ' | sed 's/ $//')"
    crashed_twice() { [ "$(container crash crash .restartCount)" -ge 2 ]; }
    until_so "crash: it was started anew twice" 90 crash crashed_twice
    # Without a cluster the kubelet writes its reason for waiting into the pod's status only with the next event.
    until_so "crash: the kubelet waits longer each time" 60 crash grep -q "back-off 20s restarting failed container=crash" "$KUBELET_LOG"
    is "crash: the last end is told" "Error 3 why it ended" \
        "$(container crash crash '.lastState.terminated | "\(.reason) \(.exitCode) \(.message)"' | sed 's/ *$//')"
    # Ends of before the last one are removed once a minute.
    previous() { [[ $(logs crash crash '?previous=true') == *"last words"* ]]; }
    until_so "crash: the log of the one before" 90 crash previous
}

deletions() {
    unmanifest stop
    unmanifest stubborn
    until_so "stop: the pod is gone" 40 stop is_gone stop
    # With the hook's 2 seconds, well before the 30 of the grace.
    is "stop: the hook ran, then came the signal" "up prestop term" "$(tr '\n' ' ' <"$NODE/share/stop" | sed 's/ $//')"
    until_so "stubborn: it is gone after its grace" 40 stubborn is_gone stubborn
}

# non_zero WHAT FILTER: jq's filter finds a number above 0 in the summary. (The kubelet's samples come every 10 seconds; the
# first of a pod's own cgroup may be from before its containers.)
non_zero() {
    local value
    above_zero() { value=$(api /stats/summary | jq -r "$1 // \"absent\"") && [[ $value =~ ^[1-9][0-9]*$ ]]; }
    if wait_for 60 above_zero "$2"; then good "statistics: $1"; else bad "statistics: $1" "$2: $value"; fi
}

# What the kubelet knows of pods by default: of their networks and processes it asks cAdvisor alone, which knows only the
# containers of two other runtimes. With the gate PodAndContainerStatsFromCRI it asks the runtime: see cri_statistics.
statistics() {
    local side='.pods[] | select(.podRef.name == "web-node") | .containers[] | select(.name == "side")'
    local web='.pods[] | select(.podRef.name == "web-node")'
    non_zero "node: memory" .node.memory.workingSetBytes
    non_zero "container: processor time" "$side | .cpu.usageCoreNanoSeconds"
    non_zero "container: processors in use" "$side | .cpu.usageNanoCores"
    non_zero "container: memory" "$side | .memory.workingSetBytes"
    non_zero "container: memory of its own" "$side | .memory.rssBytes"
    non_zero "container: memory that is left below the limit" "$side | .memory.availableBytes"
    non_zero "container: writable layer" "$side | .rootfs.usedBytes"
    non_zero "container: log" "$side | .logs.usedBytes"
    non_zero "container: file system" "$side | .rootfs.capacityBytes"
    non_zero "pod: processor time" "$web | .cpu.usageCoreNanoSeconds"
    non_zero "pod: memory" "$web | .memory.workingSetBytes"
    non_zero "pod: disk" "$web | .\"ephemeral-storage\".usedBytes"
    non_zero "node: images" .node.runtime.imageFs.usedBytes
    has "cAdvisor counts the pod's cgroup" "container_memory_working_set_bytes{" \
        "$(api /metrics/cadvisor | grep -F "pod$(pod web .metadata.uid)" | grep -F container_memory_working_set_bytes | head -n 1)"
    has "resource metrics: the container" 'container_cpu_usage_seconds_total{container="side",namespace="default",pod="web-node"}' \
        "$(api /metrics/resource)"
}

# With the gate PodAndContainerStatsFromCRI.
cri_statistics() {
    local web='.pods[] | select(.podRef.name == "web-node")'
    non_zero "from the CRI: pod: received" "$web | .network.rxBytes"
    non_zero "from the CRI: pod: sent" "$web | .network.txBytes"
    non_zero "from the CRI: pod: processor time" "$web | .cpu.usageCoreNanoSeconds"
    non_zero "from the CRI: pod: memory" "$web | .memory.workingSetBytes"
    non_zero "from the CRI: pod: processes" "$web | .process_stats.process_count"
    non_zero "from the CRI: container: memory" "$web | .containers[] | select(.name == \"side\") | .memory.workingSetBytes"
    non_zero "from the CRI: container: writable layer" "$web | .containers[] | select(.name == \"side\") | .rootfs.usedBytes"
    has "from the CRI: metrics of the container, with its labels" 'pod="web-node"' \
        "$(api /metrics/cadvisor | grep '^container_cpu_usage_seconds_total{' | grep 'container="side"')"
    has "from the CRI: metrics of the pod's network" 'pod="web-node"' \
        "$(api /metrics/cadvisor | grep '^container_network_receive_bytes_total{' | grep 'interface="eth0"')"
}

# Errors of the runtime that the kubelet has logged while nothing was wrong. Two are of its own making: it asks for the
# status of a container that it removed itself, and probes one that it is just ending.
quiet() {
    is "the kubelet has logged no error of the runtime" "" \
        "$(grep '^E.*rpc error' "$KUBELET_LOG" | grep -v -e 'code = NotFound desc = container' -e 'ExecSync.*code = FailedPrecondition')"
    is "no operation of the runtime has failed but for these" "" \
        "$(api /metrics | grep '^kubelet_runtime_operations_errors_total' | grep -v -e container_status -e exec_sync)"
}

follow_logs() {
    curl -skN "$API/containerLogs/default/logs-node/logs?follow=true" >"$NODE/logs/followed" &
    FOLLOWER=$!
}

# The kubelet renames the log and has the runtime open a new one, while lines keep coming.
rotation() {
    local files folder
    followed() { grep -qx end "$NODE/logs/followed"; }
    until_so "rotation: the follower has seen the end" 90 logs followed
    kill $FOLLOWER 2>/dev/null
    wait $FOLLOWER 2>/dev/null
    # It begins with the file that was there when it came.
    is "rotation: it has seen each line once, in order, to the last" "4000" \
        "$(awk '$1 == "line" { if (last && $2 != last + 1) print last, $2; last = $2 } END { print last }' "$NODE/logs/followed")"
    folder=$(echo "$NODE"/pod-logs/default_logs-node_*/logs)
    rotated() { [ "$(find "$folder" -type f | wc -l)" -ge 3 ]; }
    until_so "rotation: there are old files" 30 logs rotated
    files=$(find "$folder" -type f -name '0.log.*' | sort)
    # Older files are gone, the others follow one another without a gap.
    is "rotation: no line is missing between two files" "" \
        "$(for file in $files "$folder/0.log"; do case $file in *.gz) zcat "$file" ;; *) cat "$file" ;; esac; done |
            awk '$4 == "line" { if (last && $5 != last + 1) print last, $5; last = $5 }')"
    unmanifest logs
}
