# Shared by the scripts of this folder, of tests/package and packaging/build.sh: where the test kernel comes from, how to
# become root, and how to be quiet.

cache=${WARREN_VM_CACHE:-target/vm}

# Prints what must stand before a command that needs root.
as_root() { [ "$(id -u)" = 0 ] || echo "sudo"; }

# Shows a command's output only when it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null || status=$?
  [ "$status" = 0 ] || cat "$log" >&2
  rm -f "$log"
  return "$status"
}

# Our own variables as NAME=VALUE words; none of them may hold a space.
warren_environment() { env | grep '^WARREN_[A-Z_]*=[^ ]*$' | tr '\n' ' ' || true; }

# Prints `native` where this kernel makes WireGuard links, else `vm`.
kernel_to_use() {
  if [ -n "${WARREN_KERNEL:-}" ]; then echo "$WARREN_KERNEL"; return; fi
  if [ -n "${WARREN_VM_KERNEL:-}" ]; then echo vm; return; fi
  if $(as_root) env "PATH=$PATH:/usr/sbin:/sbin" unshare --net ip link add warren-probe type wireguard 2>/dev/null; then
    echo native
  else
    echo vm
  fi
}

# ---- the virtual machine's kernel: the distribution's own or, by WARREN_VM_KERNEL (such as 5.10), another of Debian's ----

unpacked=$cache/kernel${WARREN_VM_KERNEL:+-$WARREN_VM_KERNEL}

# Sets kernel, kernel_dir and release to the unpacked kernel package.
find_kernel() {
  kernel_dir=$(cd "$unpacked" 2>/dev/null && pwd) || { echo "no kernel ${WARREN_VM_KERNEL:-}for the virtual machine: run tests/vm/setup.sh kernel" >&2; exit 1; }
  kernel=$(ls "$kernel_dir"/boot/vmlinuz-* | sort -V | tail -1)
  release=${kernel##*/vmlinuz-}
}

# Downloads and unpacks the kernel package, once. Nothing is installed on this machine.
fetch_kernel() {
  mkdir -p "$cache"
  compgen -G "$unpacked/lib/modules/*/modules.dep" >/dev/null && return
  [ -z "${WARREN_VM_KERNEL:-}" ] || list_other_kernels
  local packages
  packages=$(kernel_packages)
  [ -n "$packages" ] || { echo "the package archive offers no kernel image ${WARREN_VM_KERNEL:-}; a machine whose kernel has WireGuard needs none" >&2; exit 1; }
  echo "downloading the test machine's kernel, not installed here: $packages"
  local new=$unpacked.new debs=$unpacked.debs
  rm -rf "$new" "$debs"
  mkdir "$debs"
  # Run again after an update of the package lists when the archive has moved on since the last one.
  (cd "$debs" && { download $packages || { refresh_packages && download $(kernel_packages); }; })
  local package
  for package in "$debs"/*.deb; do dpkg -x "$package" "$new"; done
  # Ubuntu and newer Debian keep modules below /usr/lib.
  if [ ! -d "$new/lib/modules" ]; then mkdir -p "$new/lib" && ln -s ../usr/lib/modules "$new/lib/modules"; fi
  if ! compgen -G "$new/boot/vmlinuz-*" >/dev/null; then
    mkdir -p "$new/boot"
    local image
    for image in "$new"/lib/modules/*/vmlinuz; do cp "$image" "$new/boot/vmlinuz-$(basename "$(dirname "$image")")"; done
  fi
  PATH=$PATH:/usr/sbin:/sbin depmod -b "$(cd "$new" && pwd)" "$(basename "$new"/lib/modules/*)"
  rm -rf "$unpacked" "$debs"
  mv "$new" "$unpacked"
}

# The image and module packages of the wanted version, or those that the first known meta-package stands for.
kernel_packages() {
  local meta found
  if [ -n "${WARREN_VM_KERNEL:-}" ]; then
    found=$(apt_cache pkgnames "linux-image-$WARREN_VM_KERNEL" | grep -E "^linux-image-${WARREN_VM_KERNEL//./\\.}[-.+].*-cloud-amd64$" | sort -V | tail -1)
    [ -z "$found" ] || echo "$found" $(kernel_dependencies "$found")
    return
  fi
  for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-amd64 linux-image-generic; do
    found=$(kernel_dependencies "$meta" | while read -r package; do echo "$package"; kernel_dependencies "$package"; done | sort -u)
    if [ -n "$found" ]; then echo $found; return; fi
  done
}

kernel_dependencies() {
  apt_cache depends "$1" 2>/dev/null | awk '$1 ~ /Depends:/ && $2 ~ /^linux-(image|modules)-[0-9]/ && $2 !~ /extra|dbg/ { print $2 }'
}

# Suites of Debian's archive that have kernels which ours may not have.
other_suites=(bullseye bookworm bookworm-backports trixie trixie-backports)
other_lists=()

# Makes a set of package lists beside the machine's own, which stay as they are: the other suites, from the archive that
# this machine takes its packages from.
list_other_kernels() {
  local archive suite lists keys=/usr/share/keyrings/debian-archive-keyring.gpg
  archive=$(debian_archive)
  if [ -z "$archive" ]; then refresh_packages; archive=$(debian_archive); fi
  [ -n "$archive" ] && [ -e "$keys" ] || { echo "setup.sh: other kernels (WARREN_VM_KERNEL) come from Debian's archive, which this machine does not use" >&2; exit 1; }
  lists=$(cd "$cache" && pwd)/apt
  mkdir -p "$lists"/{lists,cache/archives}/partial
  for suite in "${other_suites[@]}"; do echo "deb [signed-by=$keys] $archive $suite main"; done >"$lists/sources.list"
  other_lists=(-o "Dir::Etc::SourceList=$lists/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$lists/lists"
    -o "Dir::Cache=$lists/cache" -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  refresh_packages
}

debian_archive() {
  apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }'
}

apt_cache() { apt-cache "${other_lists[@]}" "$@"; }

download() { apt-get download -qq -o APT::Sandbox::User=root "${other_lists[@]}" "$@"; }

refresh_packages() { echo "refreshing the package lists"; $(as_root) apt-get update -qq "${other_lists[@]}"; }
