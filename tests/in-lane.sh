#!/bin/sh
# Runs a command in a lane: namespaces of its own, so that nothing it does to mounts, links, firewall rules or processes
# reaches the machine, and everything it leaves behind goes when it ends.
#
#   in-lane.sh COMMAND...            own mount, network and pid namespaces, a private /run
#   in-lane.sh --mounts COMMAND...   only an own mount namespace
set -eu

# Sourced text for the shells inside. On a hybrid host the cgroup2 hierarchy beside the v1 ones is hidden, since crun from
# 1.9 on refuses such a mixture. Unmounting it is not enough: below it is a plain folder of the machine's own tmpfs, in
# which runtimes would then make folders. So /sys/fs/cgroup is furnished anew, with the same v1 hierarchies and without it.
CGROUPS='
    hide_unified() {
        mountpoint -q /sys/fs/cgroup/unified || return 0
        links=$(find /sys/fs/cgroup -maxdepth 1 -type l -printf "%f %l\n")
        hierarchies=$(awk "{ for (i = 7; i < NF; i++) if (\$i == \"-\" && \$(i + 1) == \"cgroup\") print \$5, \$(i + 3) }" /proc/self/mountinfo)
        umount -R /sys/fs/cgroup
        mount -t tmpfs -o mode=755 lane-cgroup /sys/fs/cgroup
        echo "$hierarchies" | while read -r folder options; do
            options=${options#r[wo],}
            case $options in *name=*) options=none,$options ;; esac
            mkdir -p "$folder"
            mount -t cgroup -o "$options" lane-cgroup "$folder"
        done
        echo "$links" | while read -r name target; do
            [ -z "$name" ] || ln -s "$target" "/sys/fs/cgroup/$name"
        done
    }'

[ "$(id -u)" = 0 ] || { echo "in-lane.sh: must be root" >&2; exit 1; }

if [ "${1:-}" = --mounts ]; then
    shift
    exec unshare -m --propagation private sh -c "$CGROUPS"'
        set -eu
        mount --make-rshared /
        hide_unified
        exec "$@"' in-lane "$@"
fi

# The first shell is pid 1 of the lane. It waits for the command as a child, reaps whatever is orphaned meanwhile, and
# hands the exit code on; with its end the kernel kills what is left. An uplink gives the lane a default route, as a
# node has one, that leads nowhere.
exec unshare -m -n -p --fork --mount-proc --kill-child --propagation private sh -c "$CGROUPS"'
    set -eu
    mount --make-rshared /
    hide_unified
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
