#!/bin/bash
# Makes the guest's system: base.sh FOLDER puts root.img, vmlinuz and initrd.img there. From Debian packages only; nothing of
# cricket is in it, so it is made anew only when this file or the mirror changes (see ../vm.sh).
set -eu
OUT=$1
SUITE=bookworm
PACKAGES=systemd,systemd-sysv,dbus,udev,linux-image-cloud-amd64,initramfs-tools,crun,runc,containernetworking-plugins
PACKAGES=$PACKAGES,iptables,nftables,iproute2,procps,kmod,apparmor,sudo,jq,busybox,docker-registry,umoci,skopeo,ca-certificates

# The mirror is the one that this machine's own Debian packages come from.
mirror() {
    local file
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        [ -f "$file" ] || continue
        sed -n -e 's/^URIs: *\([^ ]*\).*/\1/p' -e 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' "$file" | grep -m 1 '/debian/*$' && return
    done
    echo http://deb.debian.org/debian
}
if [ "$OUT" = --mirror ]; then
    mirror
    exit
fi

TREE=$OUT/tree
mkdir -p "$OUT"
debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$TREE" "$(mirror)"
cp -L "$TREE/vmlinuz" "$TREE/initrd.img" "$OUT/"
rm -rf "$TREE"/var/cache/apt/archives/*.deb "$TREE"/var/lib/apt/lists/*

echo cricket-vm >"$TREE/etc/hostname"
printf '127.0.0.1 localhost cricket-vm\n' >"$TREE/etc/hosts"
printf 'd41d8cd98f00b204e9800998ecf8427e\n' >"$TREE/etc/machine-id"
# The root device is known from the kernel's command line; with no fstab no unit waits for a device.
: >"$TREE/etc/fstab"
# Units that wait for what the guest lacks, or only cost time.
for unit in serial-getty@ttyS0.service getty@tty1.service getty.target systemd-timesyncd.service apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-update-utmp.service systemd-networkd-wait-online.service docker-registry.service; do
    ln -sf /dev/null "$TREE/etc/systemd/system/$unit"
done
cat >"$TREE/etc/systemd/system/vm-run.service" <<'UNIT'
[Unit]
Description=What this guest was started for
After=multi-user.target apparmor.service dbus.service

[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/bash -c 'mkdir -p /payload && mount /dev/vdb /payload && exec /payload/top/tests/vm/guest.sh'
ExecStopPost=/bin/sh -c 'sync; systemctl poweroff --force --force'

[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$TREE/etc/systemd/system/multi-user.target.wants"
ln -sf ../vm-run.service "$TREE/etc/systemd/system/multi-user.target.wants/vm-run.service"

mke2fs -q -t ext4 -L root -E root_owner=0:0 -d "$TREE" "$OUT/root.img" 6G
rm -rf --one-file-system "$TREE"
