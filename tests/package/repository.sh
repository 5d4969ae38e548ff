#!/usr/bin/env bash
# The signed repository as apt and dnf see it, each in a folder of its own, from files: what is signed is found and taken,
# what somebody changed on the way is refused. Needs target/repository (`make repository`), no root, and leaves nothing.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
failed=0

main() {
  cp -r target/repository "$here/repository"
  by_apt
  by_dnf
  exit "$failed"
}

is() {
  local what=$1; shift
  if "$@" >"$here/said" 2>&1; then echo "ok: $what"; else echo "NOT OK: $what: $*"; tail -n 12 "$here/said" | sed 's/^/  | /'; failed=1; fi
}
# refuses WORDS COMMAND: it fails, and for the reason that the words tell.
refuses() {
  local words=$1 said; shift
  if said=$("$@" 2>&1); then echo "it was taken: $said"; return 1; fi
  grep -q "$words" <<<"$said" || { echo "another reason: $said"; return 1; }
}

# ---- apt ----

by_apt() {
  local deb=$here/repository/deb
  dpkg-deb -x "$deb"/pool/warren-keyring_*.deb "$here/apt"
  mkdir -p "$here"/apt/{state/lists/partial,cache/archives/partial,etc/apt/{preferences.d,trusted.gpg.d}}
  touch "$here/apt/status"
  # The package's own entry, with the places of this folder in it.
  sed -i "s|^URIs: .*|URIs: file://$deb|; s|^Signed-By: |&$here/apt|" "$here/apt/etc/apt/sources.list.d/warren.sources"

  is "apt takes the repository with the key of the package" apt_here apt-get update
  is "and finds three packages" eval '[ "$(apt_here apt-cache pkgnames | grep -c "^warren\(-coordinator\|-relay\|\)$")" = 3 ]'
  is "and fetches one whose sums are right" eval '(cd "$here" && apt_here apt-get download warren-relay)'

  mv "$here/apt/usr/share/keyrings/warren.asc" "$here/warren.asc"
  strangers_key >"$here/apt/usr/share/keyrings/warren.asc"
  is "with another key apt refuses" refuses "is not signed\|NO_PUBKEY" apt_here apt-get update
  mv "$here/warren.asc" "$here/apt/usr/share/keyrings/warren.asc"
  sed -i 's/^Depends: .*/Depends: evil/' "$deb"/dists/stable/main/binary-*/Packages
  rm -rf "$deb"/dists/stable/main/binary-*/Packages.gz "$here"/apt/state/lists/*
  is "a list that was changed is refused" refuses "unexpected size\|Hash Sum" apt_here apt-get update
}

apt_here() {
  local program=$1; shift
  # Errors of a list are errors: apt would go on with what it has.
  "$program" -qq -o Dir="$here/apt" -o Dir::State="$here/apt/state" -o Dir::State::status="$here/apt/status" \
    -o Dir::Cache="$here/apt/cache" -o Dir::Etc="$here/apt/etc/apt" -o Dir::Etc::sourcelist=/dev/null \
    -o APT::Sandbox::User= -o APT::Update::Error-Mode=any -o APT::Architecture="$(deb_architecture)" "$@"
}
deb_architecture() { dpkg-deb -f "$(ls "$here"/repository/deb/pool/warren_*.deb | head -n 1)" Architecture; }

strangers_key() {
  mkdir -p -m 700 "$here/stranger"
  GNUPGHOME=$here/stranger gpg --batch --quiet --passphrase '' --quick-generate-key stranger rsa2048 sign 1d 2>/dev/null
  GNUPGHOME=$here/stranger gpg --armor --export
  GNUPGHOME=$here/stranger gpgconf --kill gpg-agent
}

# ---- dnf ----

by_dnf() {
  local rpm=$here/repository/rpm keys=$here/dnf/etc/pki/rpm-gpg
  mkdir -p "$here/dnf/log"
  (cd "$here/dnf" && rpm2cpio "$rpm"/warren-keyring-*.rpm | cpio -idm --quiet)
  sed -i "s|^baseurl=.*|baseurl=file://$rpm|; s|^gpgkey=file://|&$here/dnf|" "$here/dnf/etc/yum.repos.d/warren.repo"

  is "rpm knows the key" rpm --dbpath "$here/keys" --import "$keys/RPM-GPG-KEY-warren"
  is "each rpm is signed with it" eval '! rpm --dbpath "$here/keys" -K "$rpm"/*.rpm | grep -v "digests signatures OK"'
  is "dnf takes the repository with the key of the package" dnf_here makecache
  is "and finds three packages" eval '[ "$(dnf_here repoquery --qf "%{name}" | grep -c "^warren\(-coordinator\|-relay\|\)$")" = 3 ]'

  printf ' ' >>"$rpm/repodata/repomd.xml"
  rm -rf "$here/dnf/cache"
  is "a list that was changed is refused" refuses "signature" dnf_here makecache
}

dnf_here() {
  dnf -q -y --installroot="$here/dnf/root" --releasever=1 --setopt=reposdir="$here/dnf/etc/yum.repos.d" \
    --setopt=cachedir="$here/dnf/cache" --setopt=logdir="$here/dnf/log" --setopt=plugins=0 --setopt=skip_if_unavailable=0 "$@"
}

main
