#!/usr/bin/busybox sh
# The guest's first process (see run.sh): mounts, loads the modules, runs /command, reports its exit status.
export PATH=/usr/bin:/usr/sbin HOME=/root
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
# Applets fill the gaps only: what is there already is a full tool of the same name.
busybox --install -s /usr/bin 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
chmod 1777 /tmp /dev/shm
mkdir -p /var/lib /run/netns
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
for module in /modules/*; do insmod "$module" || echo "insmod $module failed" >/dev/ttyS0; done
ip link set lo up
hostname guest

stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
# Scripts run in dash: busybox's own shell would prefer its applets (its `ip` is not iproute2).
dash /command </dev/null >/dev/ttyS1 2>&1
echo "$?" >/dev/ttyS2
poweroff -f
