#!/bin/sh
# Installs with apt what is missing of the packages for a purpose: install.sh run | test | vm | bench
set -eu
case ${1:-} in
run) packages="crun containernetworking-plugins iptables iproute2 procps util-linux gcc libc6-dev make ca-certificates" ;;
test) packages="crun runc containernetworking-plugins iptables nftables iproute2 procps util-linux busybox docker-registry umoci skopeo apparmor
    protobuf-compiler jq curl gcc libc6-dev make ca-certificates git" ;;
vm) packages="qemu-system-x86 debootstrap e2fsprogs binutils jq ca-certificates" ;;
bench) packages="crun docker-registry containerd curl gzip tar iproute2 procps util-linux gcc libc6-dev make ca-certificates" ;;
*) echo "usage: install.sh run|test|vm|bench" >&2; exit 2 ;;
esac
missing=
for package in $packages; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
    installed) ;;
    *) missing="$missing $package" ;;
    esac
done
# The images are made of files of packages that apt downloads, for which it needs its lists even if nothing is missing.
if [ -z "$missing" ] && apt-cache policy nginx 2>/dev/null | grep -q 'Candidate: [0-9]'; then
    exit 0
fi
apt-get update -qq
if [ -n "$missing" ]; then
    echo "installing:$missing"
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null
fi
