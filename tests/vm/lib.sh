# Shared by the scripts of this folder: where the test kernel comes from, and how to become root.

cache=${WARREN_VM_CACHE:-target/vm}

# Prints what must stand before a command that needs root.
as_root() { [ "$(id -u)" = 0 ] || echo "sudo"; }

# Our own variables as NAME=VALUE words; none of them may hold a space.
warren_environment() { env | grep '^WARREN_[A-Z_]*=[^ ]*$' | tr '\n' ' ' || true; }

# Prints `native` where this kernel makes WireGuard links, else `vm`.
kernel_to_use() {
  if [ -n "${WARREN_KERNEL:-}" ]; then echo "$WARREN_KERNEL"; return; fi
  if $(as_root) env "PATH=$PATH:/usr/sbin:/sbin" unshare --net ip link add warren-probe type wireguard 2>/dev/null; then
    echo native
  else
    echo vm
  fi
}

# Sets kernel, kernel_dir and release to the unpacked kernel package.
find_kernel() {
  kernel_dir=$(cd "$cache/kernel" 2>/dev/null && pwd) || { echo "no kernel for the virtual machine: run tests/vm/setup.sh" >&2; exit 1; }
  kernel=$(ls "$kernel_dir"/boot/vmlinuz-* | sort -V | tail -1)
  release=${kernel##*/vmlinuz-}
}

# Downloads and unpacks the distribution's kernel package, once. Nothing is installed on this machine.
fetch_kernel() {
  mkdir -p "$cache"
  compgen -G "$cache/kernel/lib/modules/*/modules.dep" >/dev/null && return
  local packages
  packages=$(kernel_packages)
  [ -n "$packages" ] || { echo "the package archive offers no kernel image; a machine whose kernel has WireGuard needs none" >&2; exit 1; }
  echo "downloading the test machine's kernel, not installed here: $packages"
  rm -rf "$cache/kernel.new"
  # Run again after an update of the package lists when the archive has moved on since the last one.
  (cd "$cache" && rm -f linux-*.deb && { apt-get download -qq -o APT::Sandbox::User=root $packages || { refresh_packages && apt-get download -qq -o APT::Sandbox::User=root $(kernel_packages); }; })
  local package
  for package in "$cache"/linux-*.deb; do dpkg -x "$package" "$cache/kernel.new"; done
  # Ubuntu and newer Debian keep modules below /usr/lib.
  if [ ! -d "$cache/kernel.new/lib/modules" ]; then mkdir -p "$cache/kernel.new/lib" && ln -s ../usr/lib/modules "$cache/kernel.new/lib/modules"; fi
  if ! compgen -G "$cache/kernel.new/boot/vmlinuz-*" >/dev/null; then
    mkdir -p "$cache/kernel.new/boot"
    local image
    for image in "$cache"/kernel.new/lib/modules/*/vmlinuz; do cp "$image" "$cache/kernel.new/boot/vmlinuz-$(basename "$(dirname "$image")")"; done
  fi
  PATH=$PATH:/usr/sbin:/sbin depmod -b "$(cd "$cache/kernel.new" && pwd)" "$(basename "$cache"/kernel.new/lib/modules/*)"
  rm -rf "$cache/kernel" "$cache"/linux-*.deb
  mv "$cache/kernel.new" "$cache/kernel"
}

# The image and module packages that the first known meta-package stands for.
kernel_packages() {
  local meta found
  for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-amd64 linux-image-generic; do
    found=$(kernel_dependencies "$meta" | while read -r package; do echo "$package"; kernel_dependencies "$package"; done | sort -u)
    if [ -n "$found" ]; then echo $found; return; fi
  done
}

kernel_dependencies() {
  apt-cache depends "$1" 2>/dev/null | awk '$1 ~ /Depends:/ && $2 ~ /^linux-(image|modules)-[0-9]/ && $2 !~ /extra|dbg/ { print $2 }'
}

refresh_packages() { echo "refreshing the package lists"; $(as_root) apt-get update -qq; }
