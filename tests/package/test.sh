#!/usr/bin/env bash
# The life of the packages on Debian: made, installed on a machine that boots (a container with its own systemd and its own
# network), upgraded, broken, removed, purged; and installed on one that has WireGuard (a virtual machine), as the README
# says, with packets that pass. Leaves nothing running.
#
#   test.sh [--quick] [RELEASE...]      Debian's releases, bookworm and trixie where none is named; --quick is the first
#                                       day, an upgrade and the end on bookworm, and passes, saying so, on a machine that
#                                       cannot boot a container
#
# The packages hold the programs of `cargo build`: what is tried here is the packages. WARREN_CHAPTERS="installed read_only"
# are the chapters of life.sh to run in the place of all.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
. tests/vm/lib.sh
. tests/package/roots.sh
. tests/package/guest.sh
packages=$PWD/target/packages
short="installed joins_by_itself upgraded broken_settings decisions_of_the_administrator newer_state removed_and_purged"
long="installed joins_by_itself never_given_up watched upgraded edited_configuration broken_settings decisions_of_the_administrator
  killed_upgrade full_disk newer_state newer_database wrong_owners foreign_services without_ipv6 read_only removed_and_purged
  somebody_called_warren"

main() {
  local quick= release status=0
  if [ "${1:-}" = --quick ]; then quick=1; shift; fi
  chapters=${WARREN_CHAPTERS:-$long}
  [ -z "$quick" ] || { chapters=$short; set -- bookworm; }
  [ $# -gt 0 ] || set -- bookworm trixie
  if ! why=$(can_boot 2>&1); then
    echo "package: no container can boot here: ${why##*$'\n'}"
    [ -n "$quick" ] && exit 0 || exit 1
  fi
  make_packages
  for release; do
    live "$release" || status=1
    [ -n "$quick" ] || live_with_traffic "$release" || status=1
  done
  exit "$status"
}

# The version that the tree has, and one before it: the same programs, for what is tried is the upgrade.
make_packages() {
  rm -rf "$packages"/{new,old}
  mkdir -p "$packages"/{new,old}
  PROFILE=dev VERSION=0.0.1 packaging/build.sh deb >/dev/null
  mv "$packages"/*_0.0.1*.deb "$packages/old/"
  PROFILE=dev packaging/build.sh deb >/dev/null
  cp "$packages"/warren*.deb "$packages/new/"
}

# Boots a machine of one release without WireGuard, for what a container can show.
live() {
  local here began=$SECONDS
  here=$(furnished "$1" life.sh)
  run_at_boot "$here" /srv/life/said "/bin/bash /srv/life/life.sh new old $(echo $chapters)"
  timeout --foreground 1200 $(as_root) systemd-nspawn "${nspawn[@]}" --boot -D "$here" </dev/null >"$here.console" 2>&1 || true
  as_root_run mv "$here/srv/life/said" "$here.said"
  told "$here" "Debian $1"
}

# Boots a machine of one release with WireGuard, for traffic.
live_with_traffic() {
  local here began=$SECONDS
  here=$(furnished "$1" traffic.sh)
  as_root_run cp README.md "$here/srv/life/"
  run_at_boot "$here" /dev/ttyS1 "/bin/bash /srv/life/traffic.sh"
  boot_guest "$here" 1800
  told "$here" "Debian $1 with traffic"
}

furnished() {
  local here
  here=$(unpacked_root "$1")
  as_root_run mkdir -p "$here/srv/life"
  as_root_run cp -r "$packages/new" "$packages/old" tests/package/facts.sh "tests/package/$2" "$here/srv/life/"
  echo "$here"
}

# told ROOT NAME: what was said, in short, and as a whole in package-roots/last; nothing is left of the machine.
told() {
  local status=0
  tr -d '\r' <"$1.said" >"$1.told" || true
  grep -v '^ok: ' "$1.told" || true
  grep -qx passed "$1.told" || { status=1; tail -n 20 "$1.console"; }
  echo "package: $2: $(grep -c '^ok: ' "$1.told") facts hold, $(grep -c '^NOT OK' "$1.told") do not ($((SECONDS - began)) s)"
  mv "$1.told" "$roots/last"
  as_root_run rm -rf "$1" "$1".*
  return "$status"
}

main "$@"
