# Sourced by kubelet.sh: what a pod costs through the kubelet. Printed, and compared with nothing: a figure is no check.
# shellcheck shell=bash

figures() {
    local name i begun times=()
    ROUND="figures: "
    manifest small small-1
    until_so "one pod is Ready" 60 small-1 is_ready small-1
    relist_figure 1
    for i in {2..11}; do
        begun=${EPOCHREALTIME/./}
        manifest small "small-$i"
        wait_for 60 is_ready "small-$i" || bad "small-$i is Ready" "$(pod "small-$i" '.status | tojson')"
        times+=($(((${EPOCHREALTIME/./} - begun) / 1000)))
    done
    mapfile -t times < <(printf '%s\n' "${times[@]}" | sort -n)
    echo "      from a pod's file to Ready, ms: p50 ${times[4]}, least ${times[0]}, most ${times[9]}"
    for i in {12..20}; do manifest small "small-$i"; done
    for i in {12..20}; do until_so "small-$i is Ready" 60 "small-$i" is_ready "small-$i"; done
    relist_figure 20
    is "no operation of the runtime has failed" 0 "$(metric kubelet_runtime_operations_errors_total)"
    api /metrics | awk -F'[{"} ]' '
        /^kubelet_runtime_operations_duration_seconds_sum/ { sum[$3] = $NF }
        /^kubelet_runtime_operations_duration_seconds_count/ { count[$3] = $NF }
        END { for (name in sum) printf "      %-24s %6d times, mean %.2f ms\n", name, count[name], sum[name] * 1000 / count[name] }' | sort
    for name in {1..20}; do unmanifest "small-$name"; done
    # A pod that is gone has ended all its containers.
    small_gone() { [ "$(api /pods | jq '.items // [] | length')" = 0 ]; }
    until_so "they are gone" 60 none small_gone
}

# relist_figure PODS: how long the kubelet's look at all pods takes.
relist_figure() {
    local sum count
    sum=$(metric kubelet_pleg_relist_duration_seconds_sum)
    count=$(relists)
    wait_for 60 relisted $((count + 20)) || bad "the kubelet looks at all pods" ""
    echo "      relist with $1 pods: mean $(awk "BEGIN { printf \"%.2f\", ($(metric kubelet_pleg_relist_duration_seconds_sum) - $sum) * 1000 / ($(relists) - $count) }") ms"
}
