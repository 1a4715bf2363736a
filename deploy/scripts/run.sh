#!/bin/bash
# `make run`: a cricket to try, with everything of its own (socket, folders, bridge, cgroup), one pod on it, and the lines to
# go on with. Ctrl-C stops it and takes the pod away.
set -eu
# shellcheck source=deploy/scripts/toolchain.sh
. "$(dirname "$0")/toolchain.sh"
need_root run

ROOT=/var/lib/cricket-demo
STATE=/run/cricket-demo
SOCKET=$STATE/cricket.sock
FILES=$TOP/target/run
CRICKET=$TOP/target/release/cricket
CRICTL=$TOP/critest/bin/crictl

if [ -z "${CRICKET_RUN_BUILT:-}" ]; then
    "$TOP/deploy/scripts/install.sh" run
    need_cargo
    need_go
    echo "building (the first time takes some minutes)"
    (cd "$TOP" && cargo build --release --quiet)
    make -s -C "$TOP/critest" bin/crictl images
    give_back
    export CRICKET_RUN_BUILT=1
    # Recent crun refuses a cgroup2 hierarchy beside the v1 ones: there, everything runs with that one out of sight.
    if mountpoint -q /sys/fs/cgroup/unified; then
        exec "$TOP/tests/in-lane.sh" --mounts "$0"
    fi
fi

mkdir -p "$FILES/cni" "$ROOT/logs"
cat >"$FILES/cni/10-cricket-demo.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "cricket-demo", "plugins": [
  {"type": "bridge", "bridge": "cricket-demo0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$ROOT/leases", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.86.0.0/24"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
EOF
cat >"$FILES/config.toml" <<EOF
[server]
listen = "$SOCKET"
root = "$ROOT"
state = "$STATE"

[cgroup]
driver = "cgroupfs"
parent = "/cricket-demo"

[network]
conf_dir = "$FILES/cni"
cache_dir = "$ROOT/cni"
EOF
cat >"$FILES/crictl.yaml" <<EOF
runtime-endpoint: unix://$SOCKET
image-endpoint: unix://$SOCKET
timeout: 30
EOF
cat >"$FILES/pod.json" <<EOF
{"metadata": {"name": "hello", "namespace": "default", "uid": "hello-1", "attempt": 0},
 "hostname": "hello", "log_directory": "$ROOT/logs/hello", "linux": {"cgroup_parent": "/cricket-demo/pods"}}
EOF
cat >"$FILES/container.json" <<EOF
{"metadata": {"name": "greeter", "attempt": 0}, "image": {"image": "localhost/quickstart:latest"}, "log_path": "greeter.log",
 "labels": {"io.kubernetes.pod.name": "hello", "io.kubernetes.pod.namespace": "default"}, "linux": {},
 "command": ["sh", "-c", "echo Hello from pod \$(hostname) on \$(ip -4 -o address show dev eth0 | cut -d' ' -f7); exec sleep 100000"]}
EOF

crictl() { "$CRICTL" --config "$FILES/crictl.yaml" "$@"; }
# show COMMAND...: prints the line that a user would type, then runs it.
show() { echo "\$ crictl $*" | sed "s|$TOP/||g"; crictl "$@"; }

DAEMON=
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)
clean() {
    trap - EXIT INT TERM
    echo
    echo "stopping"
    crictl rmp --all --force >/dev/null 2>&1 || true
    if [ -n "$DAEMON" ]; then kill -TERM "$DAEMON" 2>/dev/null && wait "$DAEMON" || true; fi
    # The keeper outlives a daemon on purpose; with the demonstration it ends. It is ours if our folder is in its arguments.
    local pid
    for pid in $(cd /proc && echo [0-9]*); do
        if [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$CRICKET" ] &&
            tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "keeper --socket $STATE/"; then
            kill -KILL "$pid" 2>/dev/null || true
        fi
    done
    find /sys/fs/cgroup -depth -type d -path '*/cricket-demo*' -exec rmdir {} + 2>/dev/null || true
    ip link delete cricket-demo0 2>/dev/null || true
    echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
    rm -rf --one-file-system "$STATE"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In a session of its own: Ctrl-C is for this script, which takes the pod away first. A daemon that is told to stop leaves its pods.
setsid "$CRICKET" serve --config "$FILES/config.toml" >"$FILES/cricket.log" 2>&1 </dev/null &
DAEMON=$!
for _ in $(seq 200); do
    crictl version >/dev/null 2>&1 && break
    if ! kill -0 "$DAEMON" 2>/dev/null; then break; fi
    sleep 0.1
done
if ! crictl version; then
    echo "cricket did not start; its log:" >&2
    tail -n 20 "$FILES/cricket.log" >&2
    exit 1
fi
"$CRICKET" image --socket "$SOCKET" import "$TOP/critest/images/out/quickstart"
# What an earlier run left, should it have been killed.
crictl rmp --all --force >/dev/null 2>&1 || true
rm -rf "$ROOT/logs/hello"
# shown COMMAND...: as show, on standard error; prints the last line of the answer, which is an id.
shown() {
    local answer
    answer=$(show "$@") || return
    echo "$answer" >&2
    echo "${answer##*$'\n'}"
}
pod=$(shown runp "$FILES/pod.json")
container=$(shown create --no-pull "$pod" "$FILES/container.json" "$FILES/pod.json")
show start "$container"
for _ in $(seq 100); do
    [ -n "$(crictl logs "$container" 2>/dev/null)" ] && break
    sleep 0.1
done
show logs "$container"
show ps
cat <<EOF

cricket serves on $SOCKET; its log is target/run/cricket.log. To go on, in another terminal as root:

  alias crictl='$CRICTL --config $FILES/crictl.yaml'
  crictl pods
  crictl exec --sync ${container:0:13} ps
  crictl stats
  $CRICKET status --socket $SOCKET

Ctrl-C stops it and removes the pod.
EOF
wait "$DAEMON"
