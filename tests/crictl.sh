#!/bin/bash
# crictl drives a whole pod life on a daemon of its own, then the leak ledger must be as before.
#
#   tests/crictl.sh [crun|runc]
#
# Runs in a lane (in-lane.sh), so it touches nothing of the machine. Each check is one line; the last line has the counts.
set -u
RUNTIME=${1:-crun}
if [ -z "${CRICKET_LANE:-}" ]; then
    exec "$(dirname "$0")/in-lane.sh" "$0" "$@"
fi
# shellcheck source=tests/node.sh
. "$(dirname "$0")/node.sh"
# shellcheck source=tests/ledger.sh
. "$(dirname "$0")/ledger.sh"
# shellcheck source=tests/checks.sh
. "$(dirname "$0")/checks.sh"

WEB=
BUSYBOX=registry.k8s.io/e2e-test-images/busybox:1.29-2

finish() {
    if [ $FAILED -gt 0 ] && [ -n "${NODE:-}" ]; then
        echo "the end of the daemon's log:"
        tail -n 40 "$NODE/logs/daemon"
    fi
    node_destroy
    echo "crictl script with $RUNTIME: $PASSED passed, $FAILED failed, 0 skipped"
    [ $FAILED = 0 ]
}

# pod NAME NAMESPACE_OPTIONS [MORE]: writes the pod's config and prints the file's name.
pod() {
    cat >"$NODE/$1.json" <<EOF
{"metadata": {"name": "$1", "namespace": "lane", "uid": "uid-$1", "attempt": 1}, "hostname": "host-$1",
 "log_directory": "$NODE/logs/$1", "labels": {"lane": "crictl"}, "annotations": {"note": "kept"},
 "dns_config": {"servers": ["10.10.10.10"], "searches": ["lane.example"], "options": ["ndots:8"]},
 "linux": {"cgroup_parent": "$PARENT/pods", "security_context": {"namespace_options": {$2}}}${3:-}}
EOF
    echo "$NODE/$1.json"
}

# container NAME SCRIPT [MORE]: writes the config of a container that runs a shell script and prints the file's name.
container() {
    jq -n --arg name "$1" --arg script "$2" --arg image "$BUSYBOX" --argjson more "${3:-{\}}" \
        '{metadata: {name: $name, attempt: 2}, image: {image: $image}, command: ["sh", "-c", $script],
          log_path: ($name + ".log"), labels: {lane: "crictl"}, linux: {}} * $more' >"$NODE/$1.container.json"
    echo "$NODE/$1.container.json"
}

status() { crictl inspect -o go-template --template "{{.status.$2}}" "$1" 2>&1; }
is_state() { [ "$(status "$1" state)" = "$2" ]; }

# fetch ADDRESS PORT: the last line of the page that a web server has at /.
fetch() { timeout 10 bash -c 'exec 3<>/dev/tcp/$0/$1; printf "GET / HTTP/1.0\r\n\r\n" >&3; tail -n 1 <&3' "$1" "$2" 2>&1; }

# run_pod WHAT CONFIG: its id is in ID. (crictl warns on stderr of what a kubelet would have set.)
run_pod() {
    ID=$(crictl runp --runtime="$RUNTIME" "$2" 2>"$NODE/logs/err")
    if [[ $ID =~ ^[0-9a-f]{64}$ ]]; then good "$1"; else bad "$1" "$ID $(cat "$NODE/logs/err")"; fi
}

# run POD POD_CONFIG NAME SCRIPT [MORE]: creates and starts a container, its id is in ID.
run() {
    ID=$(crictl create --no-pull "$1" "$(container "$3" "$4" "${5:-{\}}")" "$2" 2>"$NODE/logs/err")
    [[ $ID =~ ^[0-9a-f]{64}$ ]] || { bad "create $3" "$ID $(cat "$NODE/logs/err")"; return 1; }
    holds "create and start $3" crictl start "$ID"
}

images() {
    local text
    holds "pull" crictl pull "$BUSYBOX"
    text=$(crictl images -q --no-trunc 2>&1)
    is "one image is listed" 1 "$(grep -c sha256: <<<"$text")"
    text=$(crictl inspecti -o go-template --template '{{.status.repoTags}} {{.status.repoDigests}}' "$BUSYBOX" 2>&1)
    has "the image keeps its upstream name" "[$BUSYBOX]" "$text"
    has "the image has a digest of its upstream name" "registry.k8s.io/e2e-test-images/busybox@sha256:" "$text"
}

streams() { # POD CONFIG
    local text
    run "$1" "$2" streams 'echo to stdout; echo to stderr >&2; head -c 100000 /dev/zero | tr "\0" x; echo; printf unfinished' || return
    wait_for 30 is_state "$ID" CONTAINER_EXITED
    is "exit code 0 is Completed" "0 Completed" "$(status "$ID" exitCode) $(status "$ID" reason)"
    text=$(crictl logs "$ID" 2>/dev/null)
    has "logs: stdout" "to stdout" "$text"
    is "logs: the 100 kB line is whole" 100000 "$(grep -o 'x*' <<<"$text" | awk '{ print length($0) }' | sort -n | tail -n 1)"
    has "logs: a line without an end" "unfinished" "$text"
    is "logs: stderr" "to stderr" "$(crictl logs "$ID" 2>&1 >/dev/null)"
    is "logs: the file's lines have the CRI's form" 0 \
        "$(grep -vcE '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{9}(Z|[+-][0-9]{2}:[0-9]{2}) (stdout|stderr) [FP] ' "$(status "$ID" logPath)")"
}

execs() { # CONTAINER
    local text
    is "exec: output" hello "$(crictl exec --sync "$1" sh -c 'printf hello' 2>&1 | head -n 1)"
    text=$(crictl exec --sync "$1" sh -c 'echo out; echo err >&2; exit 3' 2>&1)
    has "exec: exit code 3" "exited with 3" "$text"
    text=$(crictl exec --sync --timeout 1 "$1" sh -c 'setsid sleep 4321 & sleep 4321' 2>&1) && text="no error: $text"
    has "exec: the timeout is an error" "DeadlineExceeded" "$text"
    is "exec: nothing of it is left" "" "$(crictl exec --sync "$1" sh -c 'pgrep -f "sleep 432[1]"; true' 2>&1 | tr -d '\n')"
    # The client takes answers of 16 MiB at most, so that much is kept and the rest dropped, without an error.
    text=$(crictl exec --sync "$1" sh -c 'head -c 20000000 /dev/zero | tr "\0" y; echo done >&2' 2>"$NODE/logs/err" | tr -dc y | wc -c)
    if [ "$text" -ge 16000000 ] && [ "$text" -le 16777216 ]; then
        good "exec: 20 MB of output are cut to what an answer holds"
    else
        bad "exec: 20 MB of output are cut to what an answer holds" "$text bytes; $(cat "$NODE/logs/err")"
    fi
}

endings() { # POD CONFIG
    local text
    run "$1" "$2" seven 'exit 7' && wait_for 30 is_state "$ID" CONTAINER_EXITED
    is "exit code 7 is an Error" "7 Error" "$(status "$ID" exitCode) $(status "$ID" reason)"
    run "$1" "$2" oom 'dd if=/dev/zero of=/dev/null bs=64M; exit $?' \
        '{"linux": {"resources": {"memory_limit_in_bytes": 15728640, "memory_swap_limit_in_bytes": 15728640}}}' &&
        wait_for 60 is_state "$ID" CONTAINER_EXITED
    is "out of memory" "137 OOMKilled" "$(status "$ID" exitCode) $(status "$ID" reason)"
    run "$1" "$2" term 'trap "sleep 2; echo handler ran; exit 5" TERM; echo ready; while :; do sleep 0.1; done' || return
    is_ready() { crictl logs "$ID" 2>&1 | grep -q ready; }
    wait_for 30 is_ready
    holds "stop" crictl stop --timeout 20 "$ID"
    is "stop waits for the TERM handler" "5 CONTAINER_EXITED" "$(status "$ID" exitCode) $(status "$ID" state)"
    has "what the handler printed is in the log" "handler ran" "$(crictl logs "$ID" 2>&1)"
    holds "a second stop is no error" crictl stop "$ID"
    text=$(crictl start "$ID" 2>&1) && text="no error"
    has "an exited container does not start again" "rror" "$text"
}

three_pods() {
    local shared_config pod_config host_config text
    pod_config=$(pod net '"pid": 1' ', "port_mappings": [{"protocol": 0, "container_port": 8080, "host_port": 18080}]')
    host_config=$(pod host '"network": 2, "pid": 1')
    shared_config=$(pod shared '"pid": 0')
    run_pod "runp with a pod network" "$pod_config"
    POD_NET=$ID
    run_pod "runp with the host network" "$host_config"
    POD_HOST=$ID
    run_pod "runp with a shared pid namespace" "$shared_config"
    POD_SHARED=$ID
    is "three pods are ready" 3 "$(crictl pods -q --state Ready --no-trunc 2>/dev/null | wc -l)"
    has "the pod has an address of its network" "10.88." \
        "$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$POD_NET" 2>&1)"
    has "labels and annotations come back" "map[lane:crictl] map[note:kept]" \
        "$(crictl inspectp -o go-template --template '{{.status.labels}} {{.status.annotations}}' "$POD_NET" 2>&1)"

    run "$POD_NET" "$pod_config" web 'mkdir /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www' || return
    WEB=$ID
    is "ps lists the running container" "$WEB" "$(crictl ps -q --no-trunc 2>/dev/null)"
    is "inspect: state" CONTAINER_RUNNING "$(status "$WEB" state)"
    has "inspect: image id" "sha256:" "$(status "$WEB" imageId)"
    text=$(crictl exec --sync "$WEB" sh -c 'hostname; cat /etc/resolv.conf; tr "\0" " " </proc/1/cmdline' 2>&1)
    has "hostname" "host-net" "$text"
    has "resolv.conf" "nameserver 10.10.10.10" "$text"
    has "its own pid namespace" "httpd" "$text"
    is "the pod's address answers" page \
        "$(fetch "$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$POD_NET")" 8080)"
    is "the host port answers" page "$(fetch 192.0.2.2 18080)"
    execs "$WEB"
    streams "$POD_NET" "$pod_config"
    endings "$POD_NET" "$pod_config"

    run "$POD_HOST" "$host_config" on-host 'exec sleep 1000' &&
        has "host network: the node's links are seen" "uplink0" "$(crictl exec --sync "$ID" ip link 2>&1)"
    run "$POD_SHARED" "$shared_config" first 'exec sleep 1001'
    run "$POD_SHARED" "$shared_config" second 'exec sleep 1002' &&
        has "shared pid: a container sees the other" "sleep 1001" "$(crictl exec --sync "$ID" ps 2>&1)"
    is "shared pid: pid 1 is no container" "" "$(crictl exec --sync "$ID" sh -c 'grep -a sleep /proc/1/cmdline; true' 2>&1 | tr -d '\n')"
    statistics
    updates
}

statistics() {
    local text
    has "stats" "$WEB" "$(crictl stats -o json 2>&1)"
    has "stats: a table with the container" "web" "$(crictl stats 2>/dev/null)"
    text=$(crictl statsp -o json 2>/dev/null | jq -c --arg id "$POD_NET" '.stats[] | select(.attributes.id == $id) | .linux')
    is "statsp: the pod's link" eth0 "$(jq -r .network.defaultInterface.name <<<"$text")"
    is "statsp: processor, memory and processes" "true true true" \
        "$(jq -r '[(.cpu.usageCoreNanoSeconds.value, .memory.workingSetBytes.value, .process.processCount.value) | tonumber > 0 | tostring] | join(" ")' <<<"$text")"
    has "metricdescs" "container_cpu_usage_seconds_total" "$(crictl metricdescs 2>/dev/null)"
    text=$(crictl metricsp 2>/dev/null)
    has "metricsp: the container" "$WEB" "$text"
    has "metricsp: the pod's link" "container_network_receive_bytes_total" "$text"
}

# memory_limit CGROUP: that of a cgroup below the node's parent, on cgroup v2 or v1.
memory_limit() {
    local file
    for file in "/sys/fs/cgroup$PARENT/$1/memory.max" "/sys/fs/cgroup/memory$PARENT/$1/memory.limit_in_bytes"; do
        [ ! -e "$file" ] || { cat "$file"; return; }
    done
    echo "$1 has no limit on memory"
}

updates() {
    local text
    holds "update" crictl update --cpu-share 256 --memory 134217728 "$WEB"
    is "update: the limits are shown" "256 134217728" \
        "$(crictl inspect "$WEB" 2>/dev/null | jq -r '.status.resources.linux | "\(.cpuShares) \(.memoryLimitInBytes)"')"
    is "update: the limit is in force" 134217728 "$(memory_limit "pods/cricket-$WEB")"
    text=$(crictl update --cpu-quota 5 "$WEB" 2>&1) && text="no error"
    has "update: what makes no sense is refused by name" "cpu_quota 5" "$text"
}

# hears FILE: the events so far, as "type id" lines.
heard() { jq -r '"\(.containerEventType) \(.containerId)"' "$1" 2>/dev/null; }

events() {
    local file=$NODE/logs/events config text
    # Not through the function: then the pid would be a shell's, and what it started would outlive it.
    timeout 120 "$CRICTL" --config "$NODE/crictl.yaml" events >"$file" 2>"$NODE/logs/err" &
    EVENTS_PID=$!
    config=$(pod events '"network": 2, "pid": 1')
    # The subscription has begun once something is heard of.
    hears_pod() {
        ID=$(crictl runp --runtime="$RUNTIME" "$config" 2>/dev/null)
        wait_for 2 grep -q "$ID" "$file" && return 0
        crictl rmp -f "$ID" >/dev/null 2>&1
        return 1
    }
    if wait_for 30 hears_pod; then good "events: a pod is heard of"; else bad "events: a pod is heard of" "$(cat "$NODE/logs/err")"; fi
    local id=$ID
    crictl rmp -f "$id" >/dev/null 2>&1
    gone() { heard "$file" | grep -q "CONTAINER_DELETED_EVENT $id"; }
    wait_for 30 gone
    text=$(heard "$file" | grep "$id" | awk '{ print $1 }' | tr '\n' ' ')
    is "events: the whole life of a pod" \
        "CONTAINER_CREATED_EVENT CONTAINER_STARTED_EVENT CONTAINER_STOPPED_EVENT CONTAINER_DELETED_EVENT " "$text"
    kill "$EVENTS_PID" 2>/dev/null
    wait "$EVENTS_PID" 2>/dev/null
    rm -rf "$NODE/logs/events"
}

tear_down() {
    local id
    holds "rm refuses nothing that has ended" crictl rm "$(crictl ps -a -q --state Exited --no-trunc --name seven)"
    holds "rm --force takes a running one" crictl rm --force "$WEB"
    for id in "$POD_NET" "$POD_HOST" "$POD_SHARED"; do
        holds "stopp" crictl stopp "$id"
        holds "a second stopp is no error" crictl stopp "$id"
        holds "rmp" crictl rmp "$id"
    done
    is "no container is left" "" "$(crictl ps -a -q 2>&1)"
    is "no pod is left" "" "$(crictl pods -q 2>&1)"
    # A pod's logs are the kubelet's to remove.
    rm -rf "$NODE"/logs/{net,host,shared}
    holds "rmi" crictl rmi "$BUSYBOX"
    is "no image is left" "" "$(crictl images -q 2>&1)"
}

trap "finish || exit 1" EXIT
node_prepare || { bad "prepare a node" ""; exit 1; }
node_start || { bad "start the daemon" ""; exit 1; }
has "version" "cricket" "$(crictl version 2>&1)"
is "info: runtime and network are ready" "true true" \
    "$(crictl info 2>/dev/null | jq -r '[.status.conditions[] | select(.type == "RuntimeReady" or .type == "NetworkReady") | .status] | join(" ")')"
has "info: the handler is known" "\"$RUNTIME\"" "$(crictl info 2>/dev/null | jq -c '[.runtimeHandlers[]?.name]')"
# Twice: the bridge, the chains and the folders that the first round made may stay, a second round must add nothing.
for ROUND in "first round: " "second round: "; do
    images
    three_pods
    tear_down
    events
    if [ "$ROUND" = "first round: " ]; then
        ledger_sorted >"$NODE/logs/ledger.before"
    else
        holds "the ledger is as before" ledger_same "$NODE/logs/ledger.before"
    fi
done
ROUND=
node_stop
is "SIGTERM ends the daemon with code 0" 0 $?
