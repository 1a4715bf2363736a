# Sourced by the scripts that need a node: a daemon with a configuration, a network and a registry of its own.
# Everything lies below $NODE. The caller runs in a lane (in-lane.sh) and sets RUNTIME.
# shellcheck shell=bash

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CRICKET=${CRICKET:-$TOP/target/debug/cricket}
CRICTL=${CRICTL:-$TOP/critest/bin/crictl}
TESTIMAGES=${TESTIMAGES:-$TOP/critest/bin/testimages}
IMAGES=${IMAGES:-$TOP/critest/images/out}

node_need() {
    local file
    for file in "$CRICKET" "$CRICTL" "$TESTIMAGES"; do
        [ -x "$file" ] || { echo "$0: $file is missing: run make build tools images" >&2; exit 2; }
    done
    [ -f "$IMAGES/key" ] || { echo "$0: $IMAGES holds no images: run make images" >&2; exit 2; }
}

# wait_for SECONDS COMMAND...: polls until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# Makes $NODE, starts the registry and writes every configuration file.
node_prepare() {
    node_need
    # By these names in-lane.sh finds what is left, should this script be killed.
    NODE=$(mktemp -d "/tmp/$CRICKET_LANE-XXXXXX")
    # As /run is: the root of a pod's user namespace must be able to walk to what is prepared for it.
    chmod 711 "$NODE"
    PARENT=/$(basename "$NODE")
    SOCKET=$NODE/state/cricket.sock
    mkdir -p "$NODE"/{root,state,conf.d,cni,cni-cache,leases,logs,registry}
    # The bundles live on a tmpfs, as below /run.
    mount -t tmpfs -o mode=700 cricket-state "$NODE/state"
    "$TESTIMAGES" serve -out "$IMAGES" -dir "$NODE/registry" >"$NODE/logs/registry" 2>&1 &
    REGISTRY_PID=$!
    wait_for 20 test -f "$NODE/registry/address" || { cat "$NODE/logs/registry" >&2; return 1; }
    cat >"$NODE/cni/10-node.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "node", "plugins": [
  {"type": "bridge", "bridge": "node0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$NODE/leases", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.88.0.0/16"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
EOF
    cat >"$NODE/config.toml" <<EOF
[server]
listen = "$SOCKET"
root = "$NODE/root"
state = "$NODE/state"

[runtime]
default = "${RUNTIME:-crun}"
[runtime.handlers.crun]
path = "crun"
[runtime.handlers.runc]
path = "runc"

[cgroup]
driver = "cgroupfs"
parent = "$PARENT"

[network]
mode = "cni"
conf_dir = "$NODE/cni"
cache_dir = "$NODE/cni-cache"

[image]
registries_conf = "$NODE/registry/registries.conf"
registries_conf_dir = "$NODE/registry/none"
certs_d = []

[log]
level = "${LOG_LEVEL:-info,cricket=debug}"
EOF
    if [ "${RUNTIME:-}" = youki ]; then
        printf '\n[runtime.handlers.youki]\npath = "%s"\n' "$(PATH=$PATH:$TOP/critest/bin command -v youki)" >>"$NODE/config.toml"
    fi
    cat >"$NODE/crictl.yaml" <<EOF
runtime-endpoint: unix://$SOCKET
image-endpoint: unix://$SOCKET
timeout: 30
EOF
}

crictl() { timeout 120 "$CRICTL" --config "$NODE/crictl.yaml" "$@"; }

node_start() {
    "$CRICKET" serve --config "$NODE/config.toml" >>"$NODE/logs/daemon" 2>&1 </dev/null &
    DAEMON_PID=$!
    if ! wait_for 20 crictl version; then
        echo "$0: the daemon does not answer on $SOCKET; the end of its log:" >&2
        tail -n 30 "$NODE/logs/daemon" >&2
        return 1
    fi
}

# The keeper of this node: the process whose command line is the keeper's and which has our state folder open or named.
node_keeper() {
    local dir
    for dir in /proc/[0-9]*; do
        if [ "$(readlink "$dir/exe" 2>/dev/null)" = "$(readlink -f "$CRICKET")" ] &&
            tr '\0' ' ' <"$dir/cmdline" 2>/dev/null | grep -q ' keeper'; then
            echo "${dir#/proc/}"
        fi
    done
}

node_stop() {
    [ -n "${DAEMON_PID:-}" ] || return 0
    kill -TERM "$DAEMON_PID" 2>/dev/null
    wait "$DAEMON_PID"
    local code=$?
    DAEMON_PID=
    return $code
}

# Ends what node_prepare and node_start began. The lane's end would do the same to processes and mounts; the cgroups and
# the folder below /tmp are all that outlive a lane.
node_destroy() {
    [ -n "${NODE:-}" ] || return 0
    # As a trap of a script that runs with -e, this must not end at the first thing that has gone already.
    set +e
    local pid dir hierarchy
    if [ -n "${DAEMON_PID:-}" ]; then
        kill -KILL "$DAEMON_PID" 2>/dev/null
        wait "$DAEMON_PID" 2>/dev/null
    fi
    for pid in $(node_keeper); do kill -KILL "$pid" 2>/dev/null; done
    for pid in $(find /sys/fs/cgroup -path "*$PARENT*/cgroup.procs" -exec cat {} + 2>/dev/null | sort -u); do
        # 0 stands for a process outside of the lane's pid namespace.
        [ "$pid" = 0 ] || kill -KILL "$pid" 2>/dev/null
    done
    [ -n "${REGISTRY_PID:-}" ] && kill -TERM "$REGISTRY_PID" 2>/dev/null && wait "$REGISTRY_PID" 2>/dev/null
    for hierarchy in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
        [ -d "$hierarchy$PARENT" ] || continue
        find "$hierarchy$PARENT" -depth -type d | while read -r dir; do wait_for 5 rmdir "$dir"; done
    done
    grep -F " $NODE" /proc/self/mountinfo | cut -d' ' -f5 | tac | while read -r dir; do umount -l "$dir"; done
    rm -rf --one-file-system "$NODE"
}
