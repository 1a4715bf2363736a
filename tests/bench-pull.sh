#!/bin/bash
# Measures pulls of a release build beside the plain tools and beside Debian's containerd, in turns.
# tests/bench-pull.sh; ROUNDS changes the number of rounds, PEER= (empty) leaves containerd out.
set -eu
if [ -z "${CRICKET_LANE:-}" ]; then
    exec "$(dirname "$0")/in-lane.sh" "$0" "$@"
fi
CRICKET=${CRICKET:-$(cd "$(dirname "$0")/.." && pwd)/target/release/cricket}
# One line tells of the time that durability took.
LOG_LEVEL="info,cricket::image=debug"
RUNTIME=crun
PORT=5010
PEER=${PEER-containerd}
# shellcheck source=tests/node.sh
. "$(dirname "$0")/node.sh"
LAYERS=${LAYERS:-$TOP/target/bench-pull}

leave() {
    set +e
    local pid
    for pid in ${PEER_PID:-} ${CARELESS_PID:-}; do
        kill -TERM "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    node_destroy
}
trap leave EXIT
"$TOP/critest/bin/pullbench" image -out "$LAYERS"
node_prepare
# A file system of its own, as nodes have it: without a journal, ext4 does not take an inode that was freed within the last
# minutes, and looks for another one bit by bit. Each round removes 27,000 files, and whoever came next would pay for it.
truncate -s 12G "$NODE/disk.img"
mkfs.ext4 -q "$NODE/disk.img"
mkdir -p "$NODE"/{disk,careless,peer,bench}
# Without the host's page cache in between, which would copy everything once more at the cost of these two processors.
LOOP=$(losetup --find --show --direct-io=on "$NODE/disk.img")
mount "$LOOP" "$NODE/disk"
# It is detached once it is unmounted.
losetup --detach "$LOOP"
for folder in root careless peer bench; do
    mkdir "$NODE/disk/$folder"
    mount --bind "$NODE/disk/$folder" "$NODE/$folder"
done
printf 'format = "json"\n' >>"$NODE/config.toml"
mkdir -p "$NODE/registry/none"
printf '[[registry]]\nprefix = "127.0.0.1:%s"\nlocation = "127.0.0.1:%s"\ninsecure = true\n' $PORT $PORT \
    >"$NODE/registry/none/bench.conf"
node_start
# The same once more, for which nothing waits for the disk.
sed -e "s|^listen = .*|listen = \"$NODE/careless.sock\"|" -e "s|^root = .*|root = \"$NODE/careless\"|" \
    -e "s|^state = .*|state = \"$NODE/state/careless\"|" -e "s|^parent = .*|parent = \"$PARENT/careless\"|" \
    -e "s|^cache_dir = .*|cache_dir = \"$NODE/careless/cni-cache\"|" "$NODE/config.toml" >"$NODE/careless.toml"
"$TOP/critest/bin/pullbench" undurable "$CRICKET" serve --config "$NODE/careless.toml" >"$NODE/logs/careless" 2>&1 </dev/null &
CARELESS_PID=$!
wait_for 20 timeout 5 "$CRICTL" -r "unix://$NODE/careless.sock" -i "unix://$NODE/careless.sock" images ||
    { tail -n 30 "$NODE/logs/careless" >&2; exit 1; }

PEER_FLAGS=()
if [ -n "$PEER" ]; then
    cat >"$NODE/peer/config.toml" <<END
version = 2
root = "$NODE/peer/root"
state = "$NODE/peer/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "$NODE/peer/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "$NODE/peer/opt"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "$NODE/cni"
END
    "$PEER" --config "$NODE/peer/config.toml" >"$NODE/logs/peer" 2>&1 </dev/null &
    PEER_PID=$!
    wait_for 20 timeout 5 "$CRICTL" -r "unix://$NODE/peer/containerd.sock" -i "unix://$NODE/peer/containerd.sock" images ||
        { tail -n 30 "$NODE/logs/peer" >&2; exit 1; }
    PEER_FLAGS=(-peer "$NODE/peer/containerd.sock" -peer-pid "$PEER_PID")
    echo "peer: $("$PEER" --version | cut -d' ' -f1,3), overlayfs, as it comes; $(command -v unpigz igzip || echo "no unpigz: it gunzips by itself")"
fi
"$TOP/critest/bin/pullbench" run -out "$LAYERS" -scratch "$NODE/bench" -port $PORT -rounds "${ROUNDS:-5}" \
    -socket "$SOCKET" -state "$NODE/root/images" -daemon "$DAEMON_PID" -log "$NODE/logs/daemon" \
    -undurable "$NODE/careless.sock" "${PEER_FLAGS[@]}"
