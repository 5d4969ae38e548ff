#!/usr/bin/env bash
# Asks the database of known faults about every crate in Cargo.lock. Where it cannot be had, says so and passes: a
# machine without a way to it must be able to lint.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

database=https://github.com/RustSec/advisory-db
if GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote -q "$database" HEAD >/dev/null 2>&1; then
  exec cargo deny --locked check advisories
fi
echo "lint: $database is out of reach: known faults of the crates were NOT looked for"
