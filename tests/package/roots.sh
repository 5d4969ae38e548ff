# Roots of Debian to boot, for the scripts of this folder: made once a release, below target, from the archive that this
# machine takes its packages from.

roots=$PWD/target/package-roots
# What a server has, and what the tests look with.
included=systemd-sysv,dbus,udev,kmod,iproute2,iputils-ping,nftables,init-system-helpers,ca-certificates,procps
nspawn=(-q --private-network --console=pipe)
# Without a service manager on this machine there is nobody to register at.
[ -d /run/systemd/system ] || nspawn+=(--register=no --keep-unit)

as_root_run() { $(as_root) "$@"; }

# A container needs root, control groups that can be written, and a root to boot.
can_boot() {
  type -P systemd-nspawn mmdebstrap >/dev/null || { echo "systemd-nspawn or mmdebstrap is missing"; return 1; }
  make_root bookworm || return 1
  local here status
  here=$(unpacked_root bookworm)
  as_root_run systemd-nspawn "${nspawn[@]}" -D "$here" /bin/true </dev/null
  status=$?
  as_root_run rm -rf "$here"
  return $status
}

make_root() {
  local archive
  mkdir -p "$roots"
  [ ! -s "$roots/$1.tar" ] || return 0
  archive=$(debian_archive)
  [ -n "$archive" ] || { echo "roots of Debian come from its archive, which this machine does not use"; return 1; }
  echo "making a root of Debian $1 in target/package-roots" >&2
  as_root_run mmdebstrap --quiet --variant=minbase --include="$included" "$1" "$roots/$1.new.tar" "$archive" &&
    mv "$roots/$1.new.tar" "$roots/$1.tar"
}

# Prints a fresh copy.
unpacked_root() {
  local here
  make_root "$1" >&2
  here=$(mktemp -d "$roots/$1.XXXXXX")
  as_root_run tar -C "$here" -xf "$roots/$1.tar"
  as_root_run sh -c "echo warren-test >'$here/etc/hostname'"
  echo "$here"
}

# run_at_boot ROOT FILE COMMAND: at each boot once the machine is up; what it says goes to FILE.
run_at_boot() {
  as_root_run sh -c "cat >'$1/etc/systemd/system/life.service'" <<END
[Unit]
Description=The test
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardOutput=append:$2
StandardError=append:$2
ExecStart=$3
END
  as_root_run mkdir -p "$1/etc/systemd/system/default.target.wants"
  as_root_run ln -sf ../life.service "$1/etc/systemd/system/default.target.wants/life.service"
}
