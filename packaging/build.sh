#!/usr/bin/env bash
# Builds the packages of warren (agent and command line), warren-coordinator and warren-relay into target/packages.
#
#   build.sh [deb] [rpm] [tar]       where none is named, the first two, as far as this machine can make them
#
# All kinds have the same programs, and two builds of one commit are the same bytes. tar is for routers: the agent alone,
# static, with a script for procd. TARGET is another kind of machine, one of the table below. PROFILE=dev packs the programs
# of `cargo build`, for trying the packages themselves; VERSION=0.2.0 is another version than the tree's.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
. tests/vm/lib.sh
top=$PWD
out=$top/target/packages
profile=${PROFILE:-release}
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
packages="warren warren-coordinator warren-relay"
target=${TARGET:-}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export SOURCE_DATE_EPOCH LC_ALL=C.UTF-8 TZ=UTC
umask 022

main() {
  local kinds=${*:-$(can_make dh deb) $(can_make rpmbuild rpm)} kind package
  build_programs
  rm -rf "$out"/{staged,deb,rpm} "$out"/*.{deb,rpm,tar.gz}
  for package in $packages; do stage "$out/staged/$package" "$package"; done
  for kind in $kinds; do "build_$kind"; done
  (cd "$out" && find . -maxdepth 1 \( -name '*.deb' -o -name '*.rpm' -o -name '*.tar.gz' \) -printf '%9s %f\n' | sort -k 2)
}

can_make() { if type -P "$1" >/dev/null; then echo "$2"; fi; }

# ---- programs ----

build_programs() {
  for_machine
  cargo_build
  host=target/$folder
  if [ -n "$target" ]; then
    built=target/$target/$folder
    cargo_build --target "$target"
  else
    built=$host
  fi
  rm -rf "$out/pages"
  "$host/pages" "$out/pages" "$(date -u -d "@$SOURCE_DATE_EPOCH" +%F)" \
    "${target:-$(rustc -vV | sed -n 's/^host: //p')}"
}

# What the machine is called by Debian, by Fedora, and by its compiler's tools.
for_machine() {
  case $target in
    '') deb_machine=$(type -P dpkg >/dev/null && dpkg --print-architecture || true) rpm_machine=$(uname -m) tools= ;;
    aarch64-unknown-linux-*) deb_machine=arm64 rpm_machine=aarch64 tools=aarch64-linux-gnu- ;;
    armv7-unknown-linux-gnueabihf) deb_machine=armhf rpm_machine=armv7hl tools=arm-linux-gnueabihf- ;;
    x86_64-unknown-linux-musl) deb_machine=amd64 rpm_machine=x86_64 tools= ;;
    *) echo "build.sh: no machine '$target'" >&2; exit 2 ;;
  esac
  local name
  name=$(tr 'a-z-' 'A-Z_' <<<"$target")
  case $target in
    x86_64-unknown-linux-musl) export CC_x86_64_unknown_linux_musl=musl-gcc ;;
    # No compiler for musl on this machine: glibc's, told not to call what only glibc has; Rust brings musl itself.
    aarch64-unknown-linux-musl)
      export CC_aarch64_unknown_linux_musl=${tools}gcc CFLAGS_aarch64_unknown_linux_musl=-U_FORTIFY_SOURCE
      export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld
      ;;
    *-gnu*) export "CARGO_TARGET_${name}_LINKER=${tools}gcc" ;;
  esac
}

cargo_build() {
  if [ "$profile" = dev ]; then
    folder=debug
    # With the tests, since their crates' features are then those of `cargo test`, and nothing is built twice.
    cargo build --locked --workspace --bins --tests "$@"
  else
    folder=$profile
    # No path of this machine gets into a program.
    RUSTFLAGS="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$top=/src" \
      cargo build --locked --workspace --bins --profile "$profile" "$@"
  fi
}

# ---- files that both kinds have ----

# stage ROOT PACKAGE
stage() {
  local root=$1 package=$2 program file
  for program in $(programs_of "$package"); do put 755 "$built/$program" "$root/usr/bin/$program"; done
  "${tools}strip" --remove-section=.comment --remove-section=.note "$root"/usr/bin/*
  put 755 packaging/scripts/service "$root/usr/libexec/$package/service"
  for file in "$out/pages/$package"/man/*; do put 644 "$file" "$root/usr/share/man/man${file##*.}/${file##*/}"; done
  for file in $(chapters_of "$package"); do put 644 "packaging/man/$file.7" "$root/usr/share/man/man7/$file.7"; done
  for file in packaging/THIRD-PARTY.md "$out/pages/$package"/{third-party-licences.txt,sbom.json}; do
    put 644 "$file" "$root/usr/share/doc/$package/${file##*/}"
  done
  put 644 "packaging/neighbours/firewalld/$package.xml" "$root/usr/lib/firewalld/services/$package.xml"
  case $package in
    warren) stage_neighbours "$root" ;;
    warren-coordinator) put 644 packaging/coordinator.toml "$root/etc/warren/coordinator.toml" ;;
  esac
  gzip -9n "$root"/usr/share/man/*/*
}

stage_neighbours() {
  local from=packaging/neighbours to=$1/usr/lib
  put 755 packaging/scripts/neighbours "$1/usr/libexec/warren/neighbours"
  put 644 "$from/networkd/00-warren.network" "$to/systemd/network/00-warren.network"
  put 644 "$from/networkd/50-warren.conf" "$to/systemd/networkd.conf.d/50-warren.conf"
  put 644 "$from/NetworkManager/50-warren.conf" "$to/NetworkManager/conf.d/50-warren.conf"
  put 644 "$from/udev/70-warren.rules" "$to/udev/rules.d/70-warren.rules"
}

# completions ROOT PACKAGE FOLDER: the distributions differ in where zsh looks.
completions() {
  local file share=$1/usr/share
  for file in "$out/pages/$2"/completions/*; do
    case ${file##*/} in
      *.bash) put 644 "$file" "$share/bash-completion/completions/$(basename "$file" .bash)" ;;
      *.fish) put 644 "$file" "$share/fish/vendor_completions.d/${file##*/}" ;;
      _*) put 644 "$file" "$share/zsh/$3/${file##*/}" ;;
    esac
  done
}

programs_of() { case $1 in warren) echo warren warrend ;; *) echo "$1" ;; esac; }

units_of() { case $1 in warren) echo warrend.service warren-join.service warren-online.target warren-threads.service warren-dns.socket warren-dns.service ;; *) echo "$1.service" ;; esac; }

# The pages of the manual's section 7: what is about a server is on the server, all others are with the agent.
chapters_of() {
  local page
  for page in packaging/man/*.7; do
    page=$(basename "$page" .7)
    case $page in
      warren-coordinator* | warren-policy | warren-sign-in | warren-wireguard-devices) [ "$1" != warren-coordinator ] || echo "$page" ;;
      warren-relay) [ "$1" != warren-relay ] || echo "$page" ;;
      *) [ "$1" != warren ] || echo "$page" ;;
    esac
  done
}

put() { install -D -m "$1" "$2" "$3"; }

# ---- deb ----

build_deb() {
  local source=$out/deb/source package unit
  mkdir -p "$source"
  cp -a packaging/debian "$source/debian"
  cp -a "$out/staged" "$source/staged"
  cp packaging/CHANGELOG.md "$source/"
  cat >"$source/debian/changelog" <<END
warren (${version//-/\~}) unstable; urgency=medium

  * What is new is in changelog.gz.

 -- $(sed -n "s/^Maintainer: //p" packaging/debian/control)  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
END
  cp packaging/sysusers.d/warren.conf "$source/debian/warren.sysusers"
  for package in $packages; do
    completions "$source/staged/$package" "$package" vendor-completions
    put 644 "packaging/neighbours/ufw/$package" "$source/staged/$package/etc/ufw/applications.d/$package"
    for unit in $(units_of "$package"); do cp "systemd/$unit" "$source/debian/$package.${unit#"$package."}"; done
  done
  # Trying packages is quicker than sending them.
  local compression=-Zxz
  [ "$profile" != dev ] || compression="-Zgzip -z1"
  (cd "$source" && eval "$(dpkg-architecture -a"$deb_machine" -s 2>/dev/null)" && COMPRESSION=$compression quietly debian/rules binary)
  mv "$out"/deb/*.deb "$out/"
}

# ---- rpm ----

build_rpm() {
  local root=$out/rpm/staged package unit
  for package in $packages; do
    mkdir -p "$root" && cp -a "$out/staged/$package/." "$root/"
    completions "$root" "$package" site-functions
    for unit in $(units_of "$package"); do put 644 "systemd/$unit" "$root/usr/lib/systemd/system/$unit"; done
    put 644 packaging/CHANGELOG.md "$root/usr/share/doc/$package/CHANGELOG.md"
    put 644 LICENSE "$root/usr/share/licenses/$package/LICENSE"
  done
  put 644 packaging/sysusers.d/warren.conf "$root/usr/lib/sysusers.d/warren.conf"
  quietly rpmbuild -bb --target "$rpm_machine" --define "_topdir $out/rpm" --define "_rpmdir $out/rpm" --define "staged $root" \
    --define "version_of_tree ${version//-/\~}" --define "_rpmfilename %%{name}-%%{version}-%%{release}.%%{arch}.rpm" \
    --define "chapters_of_warren $(chapters_of warren | xargs)" \
    --define "chapters_of_coordinator $(chapters_of warren-coordinator | xargs)" \
    --define "_buildhost warren" --define "use_source_date_epoch_as_buildtime 1" \
    --define "clamp_mtime_to_source_date_epoch 1" --define "debug_package %{nil}" --define "_build_id_links none" \
    --define "__os_install_post %{nil}" packaging/rpm/warren.spec
  mv "$out"/rpm/*.rpm "$out/"
}

# ---- for routers ----

build_tar() {
  case $target in
    *-musl) ;;
    *) echo "build.sh: tar is static: TARGET=x86_64-unknown-linux-musl or aarch64-unknown-linux-musl" >&2; exit 2 ;;
  esac
  local root=$out/router
  rm -rf "$root"
  put 755 "$built/warrend" "$root/usr/sbin/warrend"
  put 755 "$built/warren" "$root/usr/bin/warren"
  "${tools}strip" --remove-section=.comment --remove-section=.note "$root"/usr/*bin/*
  put 755 packaging/router/warren.init "$root/etc/init.d/warren"
  put 644 packaging/router/warren.profile "$root/etc/profile.d/warren.sh"
  put 644 packaging/router/keep.conf "$root/lib/upgrade/keep.d/warren"
  tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - etc lib usr |
    gzip -9n >"$out/warren-$version-${target%%-*}-router.tar.gz"
}

main "$@"
