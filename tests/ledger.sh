# Sourced beside node.sh: the leak ledger, a text with one line for each thing that a pod could leave behind.
# shellcheck shell=bash

# ledger: prints the ledger of the node in $NODE with the daemon $DAEMON_PID.
ledger() {
    local pid dir
    for pid in self "$DAEMON_PID"; do
        awk -v who="$([ "$pid" = self ] && echo lane || echo daemon)" '{
            type = "?"; for (i = 7; i <= NF; i++) if ($i == "-") type = $(i + 1)
            print "mount " who " " $5 " " type }' "/proc/$pid/mountinfo"
    done
    # Who holds a namespace does not matter, only that it is there; a shell and its helpers hold the lane's own.
    for dir in /proc/[0-9]*/ns/*; do readlink "$dir"; done 2>/dev/null | sort -u | sed 's/^/namespace /'
    find /sys/fs/cgroup -type d -path "*$PARENT*" -printf 'cgroup %p\n' 2>/dev/null
    ip -br link | awk '{ sub(/@.*/, "", $1); print "link " $1 }'
    ip -br address | awk '{ $2 = ""; sub(/@[^ ]*/, "", $1); print "address " $0 }' | grep -v fe80
    { iptables-save; ip6tables-save; } 2>/dev/null | sed -e '/^#/d' -e 's/\[[0-9]*:[0-9]*\]//' -e 's/^/iptables /'
    for pid in $(cd /proc && echo [0-9]*); do
        dir=$(readlink "/proc/$pid/exe" 2>/dev/null) || continue
        case $dir in
        */bash | */dash | */sh | */readlink | */sort | */sed | */timeout) ;;
        *) echo "process $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)" ;;
        esac
    done
    # A connection to the registry is kept for the next pull, for some seconds.
    dir=$(ss -Htne dst "$(cat "$NODE/registry/address")" 2>/dev/null | sed -n 's/.* ino:\([0-9]*\).*/-e socket:[\1]/p')
    for pid in "$DAEMON_PID" $(node_keeper); do
        # shellcheck disable=SC2086 # patterns
        find "/proc/$pid/fd" -type l -printf '%l\n' 2>/dev/null | grep -vxF -e '' $dir |
            sed -e "s/^/fd $([ "$pid" = "$DAEMON_PID" ] && echo daemon || echo keeper) /" -e 's/:\[[0-9]*\]$//'
    done
    find "$NODE/root" "$NODE/state" "$NODE/cni-cache" "$NODE/leases" /run -xdev -printf 'file %y %p\n' 2>/dev/null
}

ledger_sorted() { ledger | sort; }

# ledger_same BEFORE WHAT: the ledger is, within 15 seconds, as in the file BEFORE; else the difference is printed.
# (A closed connection or a finished plugin may take a moment to go.)
ledger_same() {
    local deadline=$((SECONDS + 15))
    while ledger_sorted >"$NODE/logs/ledger.now"; ! cmp -s "$1" "$NODE/logs/ledger.now"; do
        if [ $SECONDS -ge $deadline ]; then
            diff "$1" "$NODE/logs/ledger.now" | grep '^[<>]' | sed -e 's/^</  gone: /' -e 's/^>/  left: /'
            return 1
        fi
        sleep 0.2
    done
}
