# Sourced by kubelet.sh: exec, attach and port-forward through the kubelet, which hands the connection on to cricket's
# streaming server. A WebSocket of a client is translated by the kubelet, so cricket sees SPDY in both cases.
# shellcheck shell=bash

streams() {
    local protocol
    for protocol in spdy websocket; do
        execs "-protocol=$protocol"
        attaches "-protocol=$protocol"
        forwards "-protocol=$protocol"
    done
}

execs() { # FLAG
    local text code
    is "exec $1: output" hello "$(ask exec web side "$1" -- printf hello 2>&1)"
    text=$(ask exec web side "$1" -- sh -c 'echo out; echo err >&2; exit 7' 2>"$NODE/logs/err")
    code=$?
    is "exec $1: both streams and the exit code" "out err 7" "$text $(grep -v exit <"$NODE/logs/err" | head -n 1) $code"
    is "exec $1: input" "said to it" "$(echo "said to it" | ask exec web side "$1" -in -- cat 2>&1)"
    head -c 5000000 /dev/urandom >"$NODE/share/random"
    is "exec $1: 5 MB there and back" "$(sha256sum <"$NODE/share/random")" \
        "$(ask exec web side "$1" -in -- cat <"$NODE/share/random" 2>"$NODE/logs/err" | sha256sum)"
    is "exec $1: a terminal" "/dev/pts/0" "$(ask exec web side "$1" -in -tty -- tty </dev/null 2>&1 | tr -d '\r')"
    text=$(ask exec web side "$1" -- /no/such/program 2>&1) && text="no error"
    has "exec $1: a program that is not there is an error" "no such file" "${text,,}"
}

attaches() { # FLAG
    local input=$NODE/input text=$NODE/logs/attached
    rm -f "$input"
    mkfifo "$input"
    ask attach talk talk "$1" -in -- <"$input" >"$text" 2>"$text.err" &
    exec 9>"$input"
    echo "you" >&9
    heard() { grep -q "heard $1" "$text" && grep -q "aside $1" "$text.err"; }
    until_so "attach $1: input and both outputs" 20 talk heard you
    exec 9>&-
    wait $!
    is "attach $1: its end does not end the container" "0 true" "$(container talk talk '"\(.restartCount) \(.ready)"')"
    has "attach $1: the output is in the log too" "heard you" "$(logs talk talk)"
}

forwards() { # FLAG
    local input=$NODE/input text=$NODE/logs/forwarded address
    rm -f "$input"
    mkfifo "$input"
    timeout 60 "$KUBELETCLIENT" forward "$1" "$API/portForward/default/web-node" 80 <"$input" >"$text" 2>"$text.err" &
    exec 9>"$input"
    until_so "forward $1: a local port listens" 20 web grep -q : "$text"
    address=$(head -n 1 "$text")
    has "forward $1: nginx answers through it" "It works" "$(curl -s --max-time 10 "http://${address:-127.0.0.1:1}/")"
    has "forward $1: and a second time" "It works" "$(curl -s --max-time 10 "http://${address:-127.0.0.1:1}/")"
    exec 9>&-
    wait $!
}
