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
for group in $groups; do
  if [ "$group" = kernel ]; then
    programs=$("${build[@]}" -q --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)
    WARREN_REQUIRE_KERNEL=1 "$here/run.sh" -t 900 $programs -- "$(grep '/deps/kernel-[0-9a-f]*$' <<<"$programs")"
  else
    cargo bench -q --bench "$group"
  fi
done
