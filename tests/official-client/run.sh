#!/usr/bin/env bash
# Two official Rust clients talk through our coordinator and its relay, on loopback.
#
# That client takes no pinned certificate, so the relay's region comes from a file that tells it to look away; the relay
# is the embedded one all the same. Its packets are counted there: a direct path would show nothing.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

cargo build -q --bin warren-coordinator
cargo build -q --manifest-path tests/official-client/Cargo.toml --target-dir target/official-client
coordinator=target/debug/warren-coordinator
dir=$(mktemp -d)
server=
end() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$dir"
}
trap end EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port) stun=$(free_port) metrics=$(free_port)
cat >"$dir/relays.json" <<END
{"Regions": {"900": {"RegionCode": "warren", "RegionName": "Warren", "Nodes": [{"HostName": "127.0.0.1",
  "IPv4": "127.0.0.1", "IPv6": "none", "DERPPort": $port, "STUNPort": $stun, "InsecureForTests": true}]}}}
END
$coordinator serve --state-dir "$dir" --listen "127.0.0.1:$port" --stun-listen "127.0.0.1:$stun" \
  --metrics "127.0.0.1:$metrics" --derp-map "$dir/relays.json" --log warn &
server=$!
for _ in $(seq 100); do curl -fs "http://127.0.0.1:$port/health" >/dev/null && break; sleep 0.1; done
$coordinator --state-dir "$dir" user create interop >/dev/null
key() { $coordinator --state-dir "$dir" key create --user interop; }

target/official-client/debug/official-client "http://127.0.0.1:$port" "$(key)" "$(key)" "${1:-1000000}"
relayed=$(curl -fs "http://127.0.0.1:$metrics/metrics" | sed -n 's/^warren_coordinator_relay_packets_sent_total //p')
echo "$relayed packets were relayed"
[ "$relayed" -gt 100 ]
