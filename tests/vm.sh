#!/bin/bash
# cgroup v2, systemd, AppArmor and an older kernel: what this machine may lack, in a guest under QEMU without KVM.
#
#   tests/vm.sh [STEP...]     all steps, or some of: service critest crictl system, in this order
#
# The guest is Debian 12 with its cloud kernel (6.1); tests/vm/base.sh makes it once, into VM_CACHE (~/.cache/cricket-vm). Each
# run gets a second disk with the debug build, the tools, the images and the scripts, and writes its results to a third one.
# It has no network. RUNTIMES (crun runc) are those that critest is run with; TEST picks tests of the system lane, of which
# else those run that have to do with the kernel. The guest's console is in target/vm/console.log, everything else it wrote in
# target/vm/results, or below VM_OUT. The last line has the counts.
set -eu
TOP=$(cd "$(dirname "$0")/.." && pwd)
CACHE=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cricket-vm}
OUT=${VM_OUT:-$TOP/target/vm}
# Cgroups, namespaces, mounts and the network of another kernel. A registry or a request is read there as it is here.
KERNEL_TESTS='builtin_network:: crash:: cve_node:: devices:: dual_stack:: events:: exec:: full_disk:: hostports:: image_volumes:: lifecycle:: logs:: mounts::
    pods:: security_context:: stats:: streams:: update:: userns::'
# The whole run; everything inside has a shorter clock of its own.
LIMIT=${VM_LIMIT:-90m}

[ "$(id -u)" = 0 ] || { echo "vm.sh: must be root (debootstrap, and files that belong to root)" >&2; exit 1; }
for tool in debootstrap mke2fs qemu-system-x86_64 jq; do
    command -v "$tool" >/dev/null || { echo "vm.sh: $tool is missing: run deploy/scripts/install.sh vm" >&2; exit 1; }
done
for file in target/debug/cricket critest/bin/critest critest/bin/crictl critest/bin/testimages critest/images/out/key; do
    [ -e "$TOP/$file" ] || { echo "vm.sh: $file is missing: run make build tools images" >&2; exit 2; }
done

key=$({ cat "$TOP/tests/vm/base.sh"; "$TOP/tests/vm/base.sh" --mirror; } | sha256sum | cut -c 1-16)
BASE=$CACHE/$key
if [ ! -f "$BASE/root.img" ]; then
    echo "vm.sh: making the guest in $BASE (a minute or two, once)"
    # Whole or not at all: a cut-off try leaves nothing under the final name. Guests of older keys go.
    mkdir -p "$CACHE"
    rm -rf --one-file-system "$CACHE"/*
    "$TOP/tests/vm/base.sh" "$BASE.new" >"$CACHE/base.log" 2>&1 </dev/null || { tail -n 20 "$CACHE/base.log" >&2; exit 1; }
    mv "$BASE.new" "$BASE"
fi

# The payload: below top/ the parts of the source tree that are needed, at their places.
rm -rf --one-file-system "$OUT"
mkdir -p "$OUT/payload/top" "$OUT/results"
cd "$TOP"
cp -a --parents tests/*.sh tests/vm deploy critest/expected critest/images/out critest/bin/{critest,crictl,testimages} \
    target/debug/cricket "$OUT/payload/top/"
system=$(find target/debug/deps -maxdepth 1 -name 'system-*' -type f -perm -100 -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)
[ -z "$system" ] || cp "$system" "$OUT/payload/system"
for file in "$OUT/payload/top/target/debug/cricket" "$OUT/payload/system"; do [ ! -e "$file" ] || strip "$file"; done
{
    echo "TOP=$TOP"
    echo "STEPS='${*:-service critest crictl system}'"
    echo "RUNTIMES='${RUNTIMES:-crun runc}'"
    echo "TEST='${TEST:-$KERNEL_TESTS}'"
    # The guest has no clock that it could trust.
    echo "date -s @$(date +%s) >/dev/null"
} >"$OUT/payload/settings"
mke2fs -q -t ext4 -L payload -E root_owner=0:0 -d "$OUT/payload" "$OUT/payload.img" 2G
rm -rf --one-file-system "$OUT/payload"
truncate -s 256M "$OUT/results.img"

started=$SECONDS
code=0
# The base is never written to: snapshot=on keeps the guest's changes in a temporary file. Where the machine is busy, the kernel
# may see no tick while it checks its timer, and would give up.
disk() { printf 'file=%s,if=virtio,format=raw,cache=unsafe,%s' "$1" "$2"; }
TMPDIR=$OUT timeout -k 10 "$LIMIT" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "${VM_MEMORY:-4G}" \
    -nodefaults -no-user-config -no-reboot -display none -serial "file:$OUT/console.log" \
    -kernel "$BASE/vmlinuz" -initrd "$BASE/initrd.img" \
    -append "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=0 random.trust_cpu=on no_timer_check" \
    -drive "$(disk "$BASE/root.img" snapshot=on)" -drive "$(disk "$OUT/payload.img" snapshot=on)" \
    -drive "$(disk "$OUT/results.img" snapshot=off)" </dev/null || code=$?
tar -C "$OUT/results" -xf "$OUT/results.img" 2>/dev/null || true
rm -f "$OUT/payload.img" "$OUT/results.img"

if [ ! -f "$OUT/results/summary" ]; then
    echo "vm.sh: the guest left no results; the end of $OUT/console.log:"
    tail -n 40 "$OUT/console.log"
    echo "vm: 0 passed, 1 failed, 0 skipped"
    exit 1
fi
# The steps before the end have left theirs.
[ $code = 0 ] || echo "QEMU ended with $code: 0 passed, 1 failed, 0 skipped" >>"$OUT/results/summary"
cat "$OUT/results/summary"
awk -v seconds=$((SECONDS - started)) '/ [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p += $(NF - 5); f += $(NF - 3); s += $(NF - 1) }
    END { printf "vm (%d s): %d passed, %d failed, %d skipped\n", seconds, p, f, s; exit f > 0 || p == 0 }' "$OUT/results/summary"
