#!/usr/bin/env bash
# Runs one command as root on a kernel that has WireGuard, and passes on its output and exit status.
#
#   run.sh [-t SECONDS] [FILE...] -- COMMAND [ARGUMENT...]
#
# Where this machine's kernel makes WireGuard links, the command runs right here, in throw-away namespaces.
# Elsewhere a virtual machine is booted: Debian's own kernel under QEMU's software emulation, with a root file
# system made of the tools below and the FILEs (programs, data, folders), each at the path that it has here.
# Programs are stripped on the way and bring their shared libraries.
#
# WARREN_KERNEL=native or vm forces one of the two; WARREN_VM_KERNEL=5.10 (or another version that setup.sh fetched)
# boots that kernel; WARREN_VM_APPEND adds to its command line; variables whose names begin with WARREN_ are passed in.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "$here/lib.sh"

# What the command finds on PATH in the guest, beside busybox for the rest.
tools=(dash bash ip bridge ss wg nft conntrack ping setpriv tc getent)
modules=(wireguard dummy veth bridge tun nf_tables nft_counter nft_chain_nat nft_masq nft_redir nft_tproxy nft_ct nft_nat
  nft_log nft_limit nft_reject_inet nft_numgen nft_hash nft_fib_inet nft_objref nfnetlink_log nf_conntrack_netlink
  nf_log_syslog sch_netem inet_diag tcp_diag udp_diag)

limit=900
if [ "${1:-}" = -t ]; then limit=$2; shift 2; fi
files=()
while [ "${1:?usage: run.sh [-t SECONDS] [FILE...] -- COMMAND...}" != -- ]; do files+=("$1"); shift; done
shift

# In namespaces of its own, so that nothing outlives it: no network, no process. /run/netns is covered, so that
# `ip netns` inside neither sees nor leaves anything here.
run_native() {
  exec timeout --foreground "$limit" $(as_root) env "PATH=$PATH:/usr/sbin:/sbin" $(warren_environment) \
    unshare --net --mount --propagation private --pid --fork --kill-child --mount-proc \
    sh -c 'mkdir -p /run/netns && mount -t tmpfs netns /run/netns && ip link set lo up && exec "$@"' sh "$@"
}

# ---- the virtual machine ----

# Copies one file or folder into the guest at its own path; a program brings its shared libraries.
add() {
  local source=$1 target=$root$2
  [ -e "$target" ] && return
  mkdir -p "${target%/*}"
  if [ -d "$source" ]; then
    cp -a "$source" "$target"
  elif is_program "$source"; then
    strip -o "$target" "$source" 2>/dev/null || cp -L "$source" "$target"
    add_libraries "$source"
  else
    cp -L "$source" "$target"
  fi
}

is_program() { [ "$(head -c 4 "$1" | tr -d '\0')" = $'\x7fELF' ]; }

add_libraries() {
  local library
  { ldd "$1" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r library; do
    [ -e "$root$library" ] && continue
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
  done
}

add_tools() {
  local tool path
  add "$(type -P busybox)" /usr/bin/busybox
  for tool in "${tools[@]}"; do
    path=$(PATH=$PATH:/usr/sbin:/sbin type -P "$tool") || { echo "run.sh: no $tool here: run tests/vm/setup.sh" >&2; exit 1; }
    add "$(readlink -f "$path")" "/usr/bin/$tool"
  done
  ln -s dash "$root/usr/bin/sh"
}

# The kernel modules in the order in which they must be loaded. Some are part of the kernel in newer ones, and some
# older ones are without.
add_modules() {
  local module number=100
  for module in "${modules[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin modprobe -q -d "$kernel_dir" -S "$release" --show-depends "$module" || true
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/modules"
  mkdir "$root/modules"
  while read -r module; do
    local name=$((number++))-${module##*/}
    case $module in
      *.xz) xz -dc "$module" >"$root/modules/${name%.xz}" ;;
      *.zst) zstd -qdc "$module" >"$root/modules/${name%.zst}" ;;
      *) cp "$module" "$root/modules/$name" ;;
    esac
  done <"$work/modules"
}

build_image() {
  local directory
  mkdir -p "$root"/{dev,proc,sys,tmp,run,etc,root,var,usr/bin,usr/sbin,usr/lib,usr/lib64}
  for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$root/$directory"; done
  printf 'root:x:0:0::/root:/bin/sh\nwarren:x:990:990::/var/lib/warren:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\nwarren:x:990:\n' >"$root/etc/group"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
  # Hosts in namespaces have theirs mounted over it.
  : >"$root/etc/resolv.conf"
  add_tools
  add_modules
  mkdir -p "$root$PWD"
  local file
  for file in "${files[@]}"; do add "$file" "$(realpath -s "$file")"; done
  cp "$here/guest-init.sh" "$root/init"
  {
    printf 'cd %q\nexport PATH=$PATH:%q\n' "$PWD" "$PATH"
    warren_environment | tr ' ' '\n' | sed 's/^/export /'
    printf 'exec'; printf ' %q' "$@"; printf '\n'
  } >"$root/command"
  (cd "$root" && find . | cpio -o -H newc --quiet -R 0:0) >"$work/initramfs"
}

# Three serial lines: the kernel's console, the command's output, and its exit status.
boot() {
  local status=0
  timeout --foreground "$limit" qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 2 -m "${WARREN_VM_MEMORY:-3072}" \
    -display none -monitor none -no-reboot -nic none -kernel "$kernel" -initrd "$work/initramfs" \
    -serial "file:$work/console" -serial stdio -serial "file:$work/status" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check ${WARREN_VM_APPEND:-}" </dev/null || status=$?
  if [ -s "$work/status" ]; then return "$(cat "$work/status")"; fi
  if [ "$status" = 124 ]; then
    echo "run.sh: the virtual machine was still running after $limit seconds" >&2
  else
    echo "run.sh: the virtual machine ended without an exit status; the end of its console:" >&2
  fi
  tail -n 30 "$work/console" >&2
  return 1
}

run_in_vm() {
  find_kernel
  work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
  root=$work/root
  build_image "$@"
  boot
}

if [ "$(kernel_to_use)" = native ]; then run_native "$@"; else run_in_vm "$@"; fi
