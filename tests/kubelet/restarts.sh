# Sourced by kubelet.sh: restarts of the kubelet and of cricket under the standing pods, and pods that fail by intent.
# shellcheck shell=bash

# unchanged WHAT: the kubelet has compared its pods with the runtime's several times, and nothing has changed.
unchanged() {
    local relist name
    relist=$(relists)
    wait_for 60 relisted $((relist + 5)) || { bad "$1: the kubelet compares its pods with the runtime's" "$relist -> $(relists)"; return; }
    for name in $STANDING; do until_so "$1: $name is Ready" 30 "$name" is_ready "$name"; done
    same "$1: the runtime has the same containers in the same states" "$NODE/logs/ids" "$(ids)"
    same "$1: the kubelet shows the same, and no pod was unready meanwhile" "$NODE/logs/standing" "$(standing)"
    has "$1: the host port answers" "It works" "$(fetch 192.0.2.2 18080)"
    has "$1: logs go on" "started as web-node" "$(logs web side)"
}

# same WHAT FILE TEXT: the text is the file's; else the difference is shown.
same() {
    local text
    if text=$(diff "$2" - <<<"$3"); then good "$1"; else bad "$1" "$text"; fi
}

# pods_settled: the kubelet shows for five looks at the runtime the same in $NODE/logs/standing.
pods_settled() {
    local relist
    relist=$(relists)
    standing >"$NODE/logs/standing"
    wait_for 60 relisted $((relist + 5)) && standing | cmp - "$NODE/logs/standing"
}

restarts() {
    local name id
    # The kubelet keeps the containers of an init step that is done.
    ids >"$NODE/logs/ids"
    standing >"$NODE/logs/standing"

    kubelet_stop
    kubelet_start || { bad "start the kubelet again" ""; return; }
    # A new kubelet first takes all pods for ready, and then those with probes for unready until these have told.
    cp "$NODE/logs/standing" "$NODE/logs/earlier"
    wait_for 90 pods_settled || bad "kubelet restart: the pods settle" "$(standing | diff "$NODE/logs/standing" -)"
    is "kubelet restart: the same containers" "$(grep -v Ready "$NODE/logs/earlier")" "$(grep -v Ready "$NODE/logs/standing")"
    unchanged "kubelet restart"

    node_stop
    is "cricket restart: it ends with code 0" 0 $?
    node_start || { bad "start the daemon again" ""; return; }
    unchanged "cricket restart"

    kill -KILL "$DAEMON_PID"
    wait "$DAEMON_PID" 2>/dev/null
    node_start || { bad "start the daemon again" ""; return; }
    unchanged "cricket kill -9"

    for id in $(node_keeper); do kill -KILL "$id"; done
    unchanged "keeper kill -9"

    # An end that nobody waited for, while cricket was away, is seen by the kubelet afterwards.
    id=$(container shared one .containerID)
    id=$(crictl inspect "${id#cricket://}" | jq .info.pid)
    node_stop
    kill -KILL "$id"
    node_start || { bad "start the daemon again" ""; return; }
    again() { [ "$(container shared one .restartCount)" = 1 ] && is_ready shared; }
    until_so "an end while cricket was away: the container is started anew" 60 shared again
    is "an end while cricket was away: with its exit code" "137" "$(container shared one '.lastState.terminated.exitCode')"
}

failures() {
    manifest broken
    manifest probed
    until_so "a program that is not there: told" 60 broken is_in broken command waiting reason CreateContainerError
    has "a program that is not there: with the reason" "/no/such/program" "$(container broken command .state.waiting.message)"
    pull_failed() { [[ $(container broken absent .state.waiting.reason) =~ ^(ErrImagePull|ImagePullBackOff)$ ]]; }
    until_so "an image that is not there: the pull fails" 60 broken pull_failed
    has "an image that is not there: named" "no-such-image:1" "$(container broken absent .state.waiting.message)"
    until_so "an image that may not be pulled" 60 broken is_in broken never waiting reason ErrImageNeverPull
    until_so "runAsNonRoot with an image of root's" 60 broken is_in broken root waiting reason CreateContainerConfigError
    restarted() { [ "$(container probed "$1" .restartCount)" -ge 1 ]; }
    until_so "a liveness probe that fails: the container is started anew" 90 probed restarted fails
    until_so "a liveness probe that hangs: likewise" 90 probed restarted hangs
}
