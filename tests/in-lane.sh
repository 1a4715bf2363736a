#!/bin/sh
# Runs a command in a lane: namespaces of its own, so that nothing it does to mounts, links, firewall rules or processes
# reaches the machine, and everything it leaves behind goes when it ends.
#
#   in-lane.sh COMMAND...            own mount, network and pid namespaces, a private /run
#   in-lane.sh --mounts COMMAND...   only an own mount namespace
#
# On a hybrid host the empty cgroup2 hierarchy beside the v1 ones is hidden: crun from 1.9 on refuses such a mixture.
set -eu

[ "$(id -u)" = 0 ] || { echo "in-lane.sh: must be root" >&2; exit 1; }

if [ "${1:-}" = --mounts ]; then
    shift
    exec unshare -m --propagation shared sh -c '
        mount --make-rprivate / && mount --make-rshared /
        if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
        exec "$@"' in-lane "$@"
fi

# The first shell is pid 1 of the lane. It waits for the command as a child, reaps whatever is orphaned meanwhile, and
# hands the exit code on; with its end the kernel kills what is left. An uplink gives the lane a default route, as a
# node has one, that leads nowhere.
exec unshare -m -n -p --fork --mount-proc --kill-child --propagation private sh -c '
    set -eu
    mount --make-rshared /
    if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
    mount -t tmpfs -o mode=755 lane-run /run
    ip link set lo up
    ip link add uplink0 type veth peer name uplink1
    ip address add 192.0.2.2/24 dev uplink0
    ip link set uplink0 up
    ip link set uplink1 up
    ip route add default via 192.0.2.1
    "$@" &
    child=$!
    trap "kill -TERM $child 2>/dev/null" TERM INT
    code=0
    wait $child || code=$?
    # A trapped signal ends the first wait early.
    while kill -0 $child 2>/dev/null; do code=0; wait $child || code=$?; done
    exit $code' in-lane "$@"
