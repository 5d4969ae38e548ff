#!/usr/bin/env bash
# Prints the table of figures: all groups, or the named ones. Each group is a bench target of Cargo.toml.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
here=tests/vm

groups=${*:-$(cargo metadata --no-deps --format-version 1 | grep -o '"kind":\["bench"\][^}]*"name":"[a-z_]*"' | sed 's/.*"name":"\(.*\)"/\1/')}
# The programs under test are built with the benches' features, so that no crate is built twice.
build=(cargo build --profile bench --bins)
for group in $groups; do build+=(--bench "$group"); done
"${build[@]}"

printf '%-64s %10s %-8s %-12s %s\n' what figure unit limit ''
# Whatever a group waits for, its run ends.
bounded() { timeout --foreground 5400 cargo bench -q --bench "$1" || { echo "$1: ended with status $? (124: not within 5,400 s)"; failed=1; }; }

# Boots the program of a group, beside ours and these files, with these arguments, where WireGuard is.
in_guest() {
  local group=$1 files=$2 programs; shift 2
  programs=$("${build[@]}" -q --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)
  WARREN_REQUIRE_KERNEL=1 "$here/run.sh" -t 900 $programs $files -- "$(grep "/deps/$group-[0-9a-f]*$" <<<"$programs")" "$@"
}

for group in $groups; do
  case $group in
    kernel) in_guest kernel "" ;;
    beside)
      bounded beside
      official=$("$here/extra-files.sh" | grep -E '/tailscaled?$' || true)
      if [ "$(wc -w <<<"$official")" = 2 ]; then in_guest beside "$official" tunnels; fi ;;
    *) bounded "$group" ;;
  esac
done
exit "${failed:-0}"
