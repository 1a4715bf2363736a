#!/bin/sh
# Runs a command in a lane: namespaces of its own, so that nothing it does to mounts, links, firewall rules or processes
# reaches the machine, and everything it leaves behind goes when it ends.
#
#   in-lane.sh COMMAND...            own mount, network and pid namespaces, a private /run
#   in-lane.sh --mounts COMMAND...   only an own mount namespace
#
# Folders below /tmp and cgroups outlive a namespace. The command names those it makes, /tmp/$CRICKET_LANE-* and
# $CRICKET_LANE-* at the top of a hierarchy, and what it left of them goes with the lane, however the command ended. A signal
# to this script ends the command. Killed with SIGKILL, it takes the lane's processes along, but leaves the folders and cgroups.
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

CRICKET_LANE=$(mktemp -u cricket-XXXXXX)
export CRICKET_LANE

# remove_leftovers: what is left below the lane's name, when no process of the lane is.
remove_leftovers() {
    # The kernel may take a moment to take the last process off a cgroup.
    tries=0
    while left=$(find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$CRICKET_LANE-*" 2>/dev/null || :) &&
        [ -n "$left" ] && [ $tries -lt 100 ]; do
        # None of these names has a blank in it.
        # shellcheck disable=SC2086
        find $left -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
        tries=$((tries + 1))
    done
    [ -z "$left" ] || echo "in-lane.sh: cgroups are left: $left" >&2
    rm -rf --one-file-system "/tmp/$CRICKET_LANE"-*
}

# The first shell is pid 1 of the lane. It waits for the command as a child, reaps whatever is orphaned meanwhile, and
# hands the exit code on; with its end the kernel kills what is left. An uplink gives the lane a default route, as a
# node has one, that leads nowhere. What is started beside a shell has no input unless it is given one.
exec 3<&0
setpriv --pdeathsig KILL unshare -m -n -p --fork --mount-proc --kill-child --propagation private sh -c "$CGROUPS"'
    set -eu
    trap "exit 143" TERM
    mount --make-rshared /
    hide_unified
    mount -t tmpfs -o mode=755 lane-run /run
    ip link set lo up
    ip link add uplink0 type veth peer name uplink1
    ip address add 192.0.2.2/24 dev uplink0
    ip link set uplink0 up
    ip link set uplink1 up
    ip route add default via 192.0.2.1
    "$@" <&3 3<&- &
    child=$!
    exec 3<&-
    trap "kill -TERM $child 2>/dev/null" TERM
    code=0
    wait $child || code=$?
    # A trapped signal ends the first wait early.
    while kill -0 $child 2>/dev/null; do code=0; wait $child || code=$?; done
    exit $code' in-lane "$@" &
lane=$!
exec 3<&-
# unshare itself is deaf to them while it waits for its child, the lane's first shell.
trap 'kill -TERM $lane $(cat /proc/$lane/task/$lane/children 2>/dev/null) 2>/dev/null || :' TERM INT HUP
code=0
wait $lane || code=$?
while kill -0 $lane 2>/dev/null; do code=0; wait $lane || code=$?; done
remove_leftovers
exit $code
