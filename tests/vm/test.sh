#!/usr/bin/env bash
# Builds the integration tests that need root and WireGuard, and runs them in one go (see run.sh).
#
#   test.sh [-t SECONDS] [TARGET...] [-- TEST-RUNNER-ARGUMENT...]      no target: all of them
#
# For example: test.sh lab -- a_killed_agent
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
cd "$here/../.."

limit=5400
if [ "${1:-}" = -t ]; then limit=$2; shift 2; fi
targets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do targets+=("$1"); shift; done
[ $# = 0 ] || shift
if [ ${#targets[@]} = 0 ]; then
  for main in tests/{kernel,lab,interop}/main.rs; do [ ! -e "$main" ] || targets+=("$(basename "${main%/main.rs}")"); done
fi

cargo build --bins "${targets[@]/#/--test=}"
# Cargo's own account of what it built: the test programs, and the programs under test beside them.
programs=$(cargo build -q --message-format=json --bins "${targets[@]/#/--test=}" |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)
tests=()
for target in "${targets[@]}"; do tests+=("$(grep "/deps/$target-[0-9a-f]*$" <<<"$programs")"); done

# A test that lacks its kernel or its peer fails.
export WARREN_REQUIRE_KERNEL=1 WARREN_REQUIRE_INTEROP=1
exec "$here/run.sh" -t "$limit" $programs "$here/each.sh" $("$here/extra-files.sh") -- \
  "$here/each.sh" "${#tests[@]}" "${tests[@]}" --test-threads=1 "$@"
