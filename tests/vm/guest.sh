#!/bin/bash
# Runs inside the guest, as the service vm-run: installs cricket as an operator would, runs the steps that the payload's
# settings name, and writes /results to the third disk. Each step adds a line with its counts to /results/summary.
set -u
. /payload/settings
PAYLOAD=/payload/top
RESULTS=/results
mkdir -p "$RESULTS"
exec > >(tee -a "$RESULTS/guest.log") 2>&1

say() { echo "[$(cut -d' ' -f1 /proc/uptime)] $*"; }
summary() { echo "$*" | tee -a "$RESULTS/summary"; }

# The source tree at the place where the tests were built.
mkdir -p "$(dirname "$TOP")"
[ "$TOP" = "$PAYLOAD" ] || ln -sfn "$PAYLOAD" "$TOP"

install_cricket() {
    ip link set lo up
    # A default route that leads nowhere, as in the lane.
    ip link add uplink0 type veth peer name uplink1
    ip address add 192.0.2.2/24 dev uplink0
    ip link set uplink0 up
    ip link set uplink1 up
    ip route add default via 192.0.2.1
    install -m 755 "$PAYLOAD/target/debug/cricket" /usr/local/bin/cricket
    install -m 755 "$PAYLOAD/critest/bin/crictl" /usr/local/bin/crictl
    install -D -m 644 "$PAYLOAD/deploy/cricket.service" /etc/systemd/system/cricket.service
    install -D -m 644 "$PAYLOAD/deploy/config.toml" /etc/cricket/config.toml
    install -D -m 644 "$PAYLOAD/deploy/crictl.yaml" /etc/crictl.yaml
    sed -i 's/^timeout:.*/timeout: 120/' /etc/crictl.yaml
    install -D -m 644 "$PAYLOAD/deploy/10-cricket-bridge.conflist" /etc/cni/net.d/10-cricket-bridge.conflist
    mkdir -p /etc/cricket/conf.d /var/lib/images
    # Only what a guest without registries needs; the cgroup driver is left to cricket.
    printf '[image]\nregistries_conf = "/var/lib/images/registries.conf"\n\n[log]\nlevel = "info,cricket=debug"\n' >/etc/cricket/conf.d/vm.toml
    systemd-run --quiet --unit=images --property=KillMode=mixed "$PAYLOAD/critest/bin/testimages" serve \
        -out "$PAYLOAD/critest/images/out" -dir /var/lib/images
    systemctl daemon-reload
}

# limited SECONDS LOG COMMAND...: its output goes to a file of the results.
limited() {
    local limit=$1 log=$RESULTS/$2
    shift 2
    timeout -k 30 "$limit" "$@" >"$log" 2>&1 </dev/null
}

step_service() {
    limited 1200 service.log "$PAYLOAD/tests/vm/service.sh"
    grep -E '^FAIL' "$RESULTS/service.log"
    summary "service: $(tail -n 1 "$RESULTS/service.log" | grep -E 'passed,' || echo 'no end: 0 passed, 1 failed, 0 skipped')"
}

step_critest() {
    local runtime code counts
    for runtime in $RUNTIMES; do
        printf '[runtime]\ndefault = "%s"\n' "$runtime" >/etc/cricket/conf.d/runtime.toml
        systemctl restart cricket
        code=0
        limited 3600 "critest-$runtime.log" "$PAYLOAD/tests/vm/critest.sh" "$runtime" || code=$?
        counts=$(tail -n 1 "$RESULTS/critest-$runtime.log" | grep -E 'passed,' || echo 'no end: 0 passed, 1 failed, 0 skipped')
        summary "critest-$runtime: $counts"
        # Other skips than expected are no spec's failure, but one of the run.
        case $code,$counts in
        0,*) ;;
        *' 0 failed,'*) summary "critest-$runtime, its skips: 0 passed, 1 failed, 0 skipped" ;;
        esac
        sed -n 's/^  /    /p' "$RESULTS/critest-$runtime.log" | tee -a "$RESULTS/summary"
        rm -f /etc/cricket/conf.d/runtime.toml
    done
}

step_crictl() {
    limited 1800 crictl.log "$TOP/tests/crictl.sh" crun
    summary "crictl: $(sed -n 's/.*: \([0-9]* passed, .*\)/\1/p' "$RESULTS/crictl.log" | tail -n 1 | grep . || echo '0 passed, 1 failed, 0 skipped')"
    grep -A 6 '^FAIL' "$RESULTS/crictl.log" | sed 's/^/    /' | tee -a "$RESULTS/summary"
}

step_system() {
    local log=$RESULTS/system.log n=0
    : >"$log"
    # shellcheck disable=SC2086 # names of tests
    limited 3600 system.log "$TOP/tests/in-lane.sh" /payload/system --ignored --test-threads 2 $TEST &
    local run=$!
    # Whoever watches the console sees how far it is.
    tail -n +1 -f --pid=$run "$log" | grep --line-buffered -E '^test .*::' | while IFS= read -r line; do
        n=$((n + 1))
        case $line in *FAILED) echo "$n: $line" ;; *) [ $((n % 10)) != 0 ] || echo "$n: $line" ;; esac
    done
    wait $run
    summary "system: $(awk '/^test result: / { print $4 " passed, " $6 " failed, 0 skipped"; found = 1 }
        END { if (!found) print "0 passed, 1 failed, 0 skipped" }' "$log")"
    # Each one that failed, with the first lines of what it said.
    awk '/^---- .* stdout ----$/ { said = 0; name = $2 } name && said++ < 12 { print "    " $0 } /^failures:$/ { name = "" }' "$log" |
        tee -a "$RESULTS/summary"
}

collect() {
    journalctl --no-pager -o short-monotonic -u cricket >"$RESULTS/cricket.journal" 2>&1
    journalctl --no-pager -o short-monotonic >"$RESULTS/all.journal" 2>&1
    dmesg >"$RESULTS/dmesg" 2>&1
    tar -C "$RESULTS" -cf /dev/vdc .
    sync
}

say "systemd $(systemctl --version | head -n 1), kernel $(uname -r), $(crun --version | head -n 1), $(runc --version | head -n 1)"
say "cgroup: $(stat -f -c %T /sys/fs/cgroup), AppArmor: $(cat /sys/module/apparmor/parameters/enabled)"
install_cricket
collect
for step in $STEPS; do
    say "step $step"
    "step_$step"
    # Each time, so that a run which is cut off leaves what it has.
    collect
done
say "done"
