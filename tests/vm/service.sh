#!/bin/bash
# Inside the guest: what only systemd shows. cricket runs as the service of deploy/cricket.service, with the systemd cgroup
# driver on cgroup v2, in a real mount namespace. Each check is one line; the last line has the counts.
set -u
PASSED=0
FAILED=0
W=/run/service-test
mkdir -p $W
IMAGE=registry.k8s.io/e2e-test-images/busybox:1.29-2
CGROUP=/sys/fs/cgroup
SLICE=kubepods-burstable-pod11111111_2222_3333.slice
PARENT=/kubepods.slice/kubepods-burstable.slice/$SLICE

good() { PASSED=$((PASSED + 1)); echo "ok    $1"; }
bad() { FAILED=$((FAILED + 1)); echo "FAIL  $1"; printf '%s\n' "$2" | head -c 2000 | sed 's/^/      /'; }
is() { if [ "$2" = "$3" ]; then good "$1"; else bad "$1" "expected: $2"$'\n'"answer:   $3"; fi; }
has() { case $3 in *"$2"*) good "$1" ;; *) bad "$1" "expected in it: $2"$'\n'"answer: $3" ;; esac; }
hasnt() { case $3 in *"$2"*) bad "$1" "not expected in it: $2"$'\n'"answer: $3" ;; *) good "$1" ;; esac; }
holds() {
    local what=$1 text
    shift
    if text=$("$@" 2>&1); then good "$what"; else bad "$what" "$* : exit $?: $text"; fi
}
# wait_for SECONDS COMMAND...: polls until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.2
    done
}
finish() {
    trap - EXIT
    echo "$PASSED passed, $FAILED failed, 0 skipped"
    [ $FAILED = 0 ]
}
trap finish EXIT

main_pid() { systemctl show -P MainPID cricket; }
keeper_pid() {
    local dir
    for dir in /proc/[0-9]*; do
        [ "$(cat "$dir/comm" 2>/dev/null)" != cricket-keeper ] || echo "${dir#/proc/}"
    done
}
cgroup_of() { cut -d: -f3 "/proc/$1/cgroup" 2>/dev/null; }
answers() { crictl version; }
status() { crictl inspect -o go-template --template "{{.status.$2}}" "$1" 2>&1; }
is_state() { [ "$(status "$1" state)" = "$2" ]; }
pid_of() { crictl inspect -o go-template --template '{{.info.pid}}' "$1" 2>&1; }

# pod NAME PARENT [NAMESPACE_OPTIONS [SECURITY_CONTEXT]]: runs a pod, its id is in POD and its configuration in $W/NAME.json.
pod() {
    CONFIG=$W/$1.json
    jq -n --arg name "$1" --arg parent "$2" --argjson options "${3:-{\"pid\": 1\}}" --argjson security "${4:-{\}}" \
        '{metadata: {name: $name, namespace: "vm", uid: ("uid-" + $name), attempt: 0}, log_directory: ("/var/log/pods/" + $name),
          linux: {cgroup_parent: $parent, security_context: ({namespace_options: $options} + $security)}}' >"$CONFIG"
    POD=$(crictl runp "$CONFIG" 2>$W/err)
    [[ $POD =~ ^[0-9a-f]{64}$ ]] && good "runp $1 in ${2:-no parent}" || bad "runp $1 in ${2:-no parent}" "$POD $(cat $W/err)"
}
# run NAME SCRIPT [MORE]: creates and starts a container in the last pod, its id is in ID.
run() {
    jq -n --arg name "$1" --arg script "$2" --arg image $IMAGE --argjson more "${3:-{\}}" \
        '{metadata: {name: $name, attempt: 0}, image: {image: $image}, command: ["sh", "-c", $script],
          log_path: ($name + ".log"), linux: {}} * $more' >"$W/$1.container.json"
    ID=$(crictl create --no-pull "$POD" "$W/$1.container.json" "$CONFIG" 2>$W/err)
    [[ $ID =~ ^[0-9a-f]{64}$ ]] || { bad "create $1" "$ID $(cat $W/err)"; return 1; }
    holds "create and start $1" crictl start "$ID"
}
inside() { crictl exec --sync "$ID" sh -c "$1" 2>&1; }

the_unit() {
    holds "systemctl start waits for READY=1" timeout 120 systemctl start cricket
    is "the unit is active" active "$(systemctl is-active cricket)"
    holds "it answers as soon as it is ready" answers
    is "auto is the systemd driver here" systemd "$(crictl info 2>/dev/null | jq -r '.. | .cgroupDriver? // empty' | head -n 1)"
    is "the daemon is in its service's cgroup" /system.slice/cricket.service "$(cgroup_of "$(main_pid)" | cut -d/ -f1-3)"
    is "one keeper" 1 "$(keeper_pid | wc -l)"
    hasnt "the keeper is in no pod's slice" kubepods "$(cgroup_of "$(keeper_pid)")"
    is "an OOM kill in the service's cgroup does not stop the service" continue "$(systemctl show -P OOMPolicy cricket)"
    holds "pull" crictl pull $IMAGE
    wait_for 60 sh -c 'crictl info | jq -e ".status.conditions[] | select(.type == \"NetworkReady\") | .status"'
    is "runtime and network are ready" "true true" "$(crictl info 2>/dev/null |
        jq -r '[.status.conditions[] | select(.type == "RuntimeReady" or .type == "NetworkReady") | .status] | join(" ")')"
}

in_a_slice() {
    pod burst $PARENT
    run main 'trap "exit 9" TERM; n=0; while :; do n=$((n + 1)); echo line $n; sleep 0.5; done' \
        '{"linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_shares": 512, "cpu_quota": 50000, "cpu_period": 100000,
            "unified": {"memory.oom.group": "1"}}}}' || return
    MAIN=$ID BURST=$POD
    MAIN_PID=$(pid_of "$ID")
    local scope=cricket-$ID.scope dir=$CGROUP$PARENT/cricket-$ID.scope
    is "the container is in its scope in the pod's slice" "$PARENT/$scope" "$(cgroup_of "$MAIN_PID" | sed 's|\(.scope\)/.*|\1|')"
    is "systemd knows the scope" "active $SLICE" "$(systemctl show -P ActiveState $scope) $(systemctl show -P Slice $scope)"
    # crun makes one more cgroup inside the scope, runc none.
    local own=$CGROUP$(cgroup_of "$MAIN_PID")
    is "nobody asked that it be spared when memory is short" 0 "$(cat "/proc/$MAIN_PID/oom_score_adj")"
    is "the memory limit" 67108864 "$(cat "$own/memory.max")"
    is "cpu limit" "50000 100000" "$(cat "$own/cpu.max")"
    is "the scope is delegated" yes "$(systemctl show -P Delegate $scope)"
    is "the kubelet's word that an OOM kill takes the whole container" 1 "$(cat "$own/memory.oom.group")"
    holds "daemon-reload" systemctl daemon-reload
    is "the limit is still there after daemon-reload" 67108864 "$(cat "$own/memory.max")"
    has "a cgroup namespace of its own" "0::/" "$(inside 'cat /proc/self/cgroup')"
    hasnt "the container does not see where it is" kubepods "$(inside 'cat /proc/self/cgroup')"
    has "the container sees its own limit" 67108864 "$(inside 'cat /sys/fs/cgroup/memory.max')"
    has "the cgroup tree is read-only" "Read-only file system" "$(inside 'mkdir /sys/fs/cgroup/x; echo max > /sys/fs/cgroup/memory.max')"
    local stats
    stats=$(crictl stats -o json "$ID" 2>&1)
    is "stats: cpu and memory are counted" true "$(jq '.stats[0] | (.cpu.usageCoreNanoSeconds.value | tonumber) > 0 and (.memory.workingSetBytes.value | tonumber) > 0' <<<"$stats")"
    pod privileged $PARENT '{"pid": 1}' '{"privileged": true}'
    run privileged 'exec sleep 3000' '{"linux": {"security_context": {"privileged": true}}}' &&
        has "a privileged container may write its own cgroup" made "$(inside 'mkdir /sys/fs/cgroup/x && rmdir /sys/fs/cgroup/x && echo made')"
}

# logged N: how many lines the main container has logged, and whether they are without a gap.
logged() { grep -c . /var/log/pods/burst/main.log; }
gapless() { [ "$(sed 's/.* line //' /var/log/pods/burst/main.log)" = "$(seq "$(logged)")" ]; }
grows() { local before; before=$(logged); wait_for 30 sh -c "[ \$(grep -c . /var/log/pods/burst/main.log) -gt $((before + 1)) ]"; }

restarts() {
    local before
    before=$(keeper_pid)
    for way in "systemctl restart cricket" "kill -KILL of the daemon" "systemctl stop cricket"; do
        case $way in
        kill*) holds "$way" kill -KILL "$(main_pid)" ;;
        *) holds "$way" $way ;;
        esac
        case $way in
        *stop*) holds "systemctl start after a stop" systemctl start cricket ;;
        esac
        holds "it answers after: $way" wait_for 60 answers
        is "the same keeper after: $way" "$before" "$(keeper_pid)"
        is "the same process runs after: $way" "$MAIN_PID CONTAINER_RUNNING" "$(pid_of "$MAIN") $(status "$MAIN" state)"
        holds "its log goes on after: $way" grows
        before=$(keeper_pid)
    done
    holds "no line of the log is missing or doubled" gapless
    holds "reload" systemctl reload cricket
    kill -KILL "$(keeper_pid)"
    another() { [ -n "$(keeper_pid)" ] && [ "$(keeper_pid)" != "$before" ]; }
    holds "a killed keeper is replaced" wait_for 60 another
    is "containers survive the keeper" "$MAIN_PID CONTAINER_RUNNING" "$(pid_of "$MAIN") $(status "$MAIN" state)"
    holds "the log goes on without the first keeper" grows
    hasnt "the new keeper is in no pod's slice" kubepods "$(cgroup_of "$(keeper_pid)")"
}

ends() {
    local dir=$CGROUP$PARENT/cricket-$MAIN.scope
    POD=$BURST CONFIG=$W/burst.json
    holds "stop" crictl stop --timeout 30 "$MAIN"
    is "it is exited" CONTAINER_EXITED "$(status "$MAIN" state)"
    holds "its scope is gone" wait_for 20 test ! -e "$dir"
    local resources='{"linux": {"resources": {"memory_limit_in_bytes": 15728640, "memory_swap_limit_in_bytes": 15728640}}}' n
    # Again and again: systemd removes the scope, and the kernel's counter with it, as soon as its last process is gone.
    for n in 1 2 3 4 5 6 7 8; do
        run oom$n 'dd if=/dev/zero of=/dev/null bs=64M; exit $?' "$resources" || return
        wait_for 60 is_state "$ID" CONTAINER_EXITED
        is "out of memory, $n" "137 OOMKilled" "$(status "$ID" exitCode) $(status "$ID" reason)"
    done
    run killed 'exec sleep 3000' "$resources" && kill -KILL "$(pid_of "$ID")"
    wait_for 60 is_state "$ID" CONTAINER_EXITED
    is "killed, but not for memory" "137 Error" "$(status "$ID" exitCode) $(status "$ID" reason)"
}

other_parents() {
    pod plain "" '{"pid": 0}'
    run plain 'exec sleep 3000' && has "no parent is cricket.slice" "/cricket.slice/cricket-" "$(cgroup_of "$(pid_of "$ID")")"
    pod bare test.slice
    run bare 'exec sleep 3000' && has "a bare slice name" "/test.slice/cricket-" "$(cgroup_of "$(pid_of "$ID")")"
    pod nested /a.slice/a-b.slice/a-b-c.slice
    run nested 'sh -c "sleep 3000" & wait' && has "a slice of slices that nobody made" "/a.slice/a-b.slice/a-b-c.slice/cricket-" "$(cgroup_of "$(pid_of "$ID")")"
    CONFIG=$W/wrong.json
    jq '.metadata.name = "wrong" | .linux.cgroup_parent = "/kubepods/pod1"' $W/plain.json >$CONFIG
    has "a parent that is no slice is refused by name" /kubepods/pod1 "$(crictl runp $CONFIG 2>&1)"
}

nothing_left() {
    crictl rmp --all --force >/dev/null 2>$W/err
    is "no pod is left" "" "$(crictl pods -q 2>&1; crictl ps -a -q 2>&1)"
    scopes() { systemctl list-units --all --plain --no-legend 'cricket-*.scope'; }
    no_scopes() { [ -z "$(scopes)" ]; }
    holds "no scope is left" wait_for 30 no_scopes || scopes
    is "no unit has failed" "" "$(systemctl list-units --failed --plain --no-legend)"
    rm -rf /var/log/pods
    for slice in a-b-c.slice a-b.slice a.slice test.slice $SLICE kubepods-burstable.slice kubepods.slice; do
        systemctl stop $slice
    done
    is "no cgroup of a pod is left" "" "$(find $CGROUP -type d -path '*cricket-*' -o -type d -name '*kubepods*')"
    holds "systemctl stop" systemctl stop cricket
    is "no mount is left" "" "$(grep -E ' (/run/cricket|/var/lib/cricket|/run/netns)/' /proc/self/mountinfo)"
    is "no bundle or namespace is left" "" "$(find /run/cricket/k8s.io /run/cricket/ns /run/cricket/pods -mindepth 1 2>&1)"
    is "no record is left" "" "$(find /var/lib/cricket/pods /var/lib/cricket/containers -mindepth 1 -name '*.json' 2>&1)"
    is "only the keeper outlives the service" "$(keeper_pid)" "$(cat $CGROUP/system.slice/cricket.service/cgroup.procs $CGROUP/system.slice/cricket.service/*/cgroup.procs 2>/dev/null | tr '\n' ' ' | sed 's/ $//')"
    holds "it starts again" systemctl start cricket
    holds "it answers again" wait_for 60 answers
    is "and remembers the image" 1 "$(crictl images -q 2>/dev/null | grep -c .)"
    hasnt "its journal has no panic" panicked "$(journalctl -u cricket --no-pager)"
}

wait_for 60 test -f /var/lib/images/registries.conf
the_unit
in_a_slice
restarts
ends
other_parents
nothing_left
