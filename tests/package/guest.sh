# A machine that has WireGuard, for test.sh: a root of Debian on a disk of its own, the kernel of tests/vm, and QEMU's
# software emulation.

# What finds the disk; the machine's own system loads the rest.
disk_modules=(virtio_pci virtio_blk ext4)

# initial_files OUT: an initial file system that finds the disk and hands over to systemd.
initial_files() {
  local here module number=10
  here=$(mktemp -d)
  mkdir -p "$here"/{bin,proc,sys,dev,new,modules}
  cp "$(type -P busybox)" "$here/bin/busybox"
  ln -s busybox "$here/bin/sh"
  for module in "${disk_modules[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin modprobe -q -d "$kernel_dir" -S "$release" --show-depends "$module" || true
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$here/list"
  while read -r module; do
    case $module in
      *.xz) xz -dc "$module" >"$here/modules/$number.ko" ;;
      *) cp "$module" "$here/modules/$number.ko" ;;
    esac
    number=$((number + 1))
  done <"$here/list"
  cat >"$here/init" <<'END'
#!/bin/sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do busybox insmod $module; done
until [ -b /dev/vda ]; do busybox sleep 0.1; done
busybox mount -t ext4 -o rw,noatime /dev/vda /new
for place in dev proc sys; do busybox mount --move /$place /new/$place; done
exec busybox switch_root /new /lib/systemd/systemd
END
  chmod +x "$here/init"
  (cd "$here" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1) >"$1"
  rm -rf "$here"
}

# boot_guest ROOT SECONDS: as a disk; what the test says comes on the second serial line, into ROOT.said.
boot_guest() {
  local root=$1 limit=$2
  find_kernel
  as_root_run mkdir -p "$root/usr/lib/modules"
  as_root_run cp -a "$kernel_dir/lib/modules/$release" "$root/usr/lib/modules/"
  as_root_run rm -rf "$root/dev"
  as_root_run mkdir "$root/dev"
  initial_files "$root.initial"
  truncate -s 2G "$root.disk"
  as_root_run env PATH="$PATH:/usr/sbin:/sbin" mke2fs -q -t ext4 -O ^has_journal -d "$root" "$root.disk"
  timeout --foreground "$limit" qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 2 -m 1024 -display none \
    -monitor none -nic none -kernel "$kernel" -initrd "$root.initial" \
    -drive "file=$root.disk,format=raw,if=virtio,cache=unsafe" -serial "file:$root.console" -serial "file:$root.said" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check net.ifnames=0" </dev/null || true
  as_root_run rm -f "$root.disk" "$root.initial"
}
