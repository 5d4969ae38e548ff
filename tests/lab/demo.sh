#!/usr/bin/env bash
# The main job, shown: two nodes, each behind a NAT of its own, join a coordinator and ping each other through the
# kernel's WireGuard: first by the coordinator's relay, then directly, then with coordinator and relay killed. At the
# end a running transfer loses its right.
#
# Hosts, routers and the switch between them are network namespaces. Nothing outlives the run: it works in throw-away
# namespaces of this machine or, where the kernel has no WireGuard, in a virtual machine (tests/vm/run.sh).
set -euo pipefail
tree=$(dirname "$(readlink -f "$0")")/../..
programs=$(readlink -f "$tree/target/debug")

if [ "${1:-}" != inside ]; then
  echo "starting a coordinator, two NATs and two hosts behind them (a virtual machine first, where this kernel has no WireGuard)"
  "$tree/tests/vm/run.sh" -t 300 "$programs"/{warren,warrend,warren-coordinator} "$0" -- "$0" inside
  echo "demo: ok"
  exit
fi

state=$(mktemp -d)
export PATH=$programs:$PATH WG_COLOR_MODE=never
server=198.51.100.1
url=http://$server:8080
started=()
trap clean_up EXIT

main() {
  make_hosts

  say "A coordinator, with a relay in it, and a key that lets nodes of one user in"
  start_coordinator
  key=$(on coordinator warren-coordinator key create --user demo --reusable)

  say "What tells each node's own resolver of the network's names. It needs root, and the agent does not"
  for node in alice bob; do
    mkdir -p "/etc/netns/$node"
    echo "nameserver 192.0.2.53" >"/etc/netns/$node/resolv.conf"
    start "$node" env "STATE_DIRECTORY=$state/$node-names" warrend --dns-helper --dns-socket "$state/$node-names.sock"
  done

  say "An agent on each node. Each node is behind a NAT; all that it is told is the coordinator's address and the key"
  for node in alice bob; do
    start "$node" warrend --state-dir "$state/$node" --socket "$state/$node.sock" --dns-socket "$state/$node-names.sock"
    until_true "$node" test -S "$state/$node.sock"
    on "$node" warren --socket "$state/$node.sock" up --coordinator "$url" --auth-key "$key" --hostname "$node"
  done

  show_relay_and_direct
  show_both_families
  show_names
  show_relay_killed
  show_status
  revocation

  say "Nothing stays behind"
  for node in alice bob; do
    stop "$node"
    on "$node" warrend --cleanup
    if ip -n "$node" link show warren0 2>/dev/null; then echo "warren0 is still on $node"; exit 1; fi
  done
}

# ---- what is shown ----

show_relay_and_direct() {
  say "The first pings go through the relay, until the agents have found the direct path, through both NATs"
  bob_address=$(quiet on bob warren --socket "$state/bob.sock" ip -4)
  on alice warren --socket "$state/alice.sock" ping --until-direct --count 30 bob | tee "$state/pings"
  if ! grep -q "via $bob_outside:" "$state/pings"; then echo "no direct path was found"; exit 1; fi
  on alice ping -n -c 2 -W 10 "$bob_address"
  on alice wg show warren0 endpoints
}

show_both_families() {
  say "They reach each other, over IPv4 and IPv6"
  local family address
  for family in 4 6; do
    address=$(quiet on bob warren --socket "$state/bob.sock" ip "-$family")
    on alice ping -n -c 2 "$address"
    address=$(quiet on alice warren --socket "$state/alice.sock" ip "-$family")
    on bob ping -n -c 2 "$address"
  done
}

show_names() {
  say "And by name"
  until_true alice ping -n -q -c 1 -W 2 bob
  on alice ping -n -c 2 bob
  on alice warren --socket "$state/alice.sock" dns query bob
}

show_relay_killed() {
  say "Coordinator and relay are killed while packets flow directly, and come back: nothing is lost"
  on alice ping -n -q -i 0.2 -c 60 "$bob_address" >"$state/train" &
  local train=$!
  sleep 2
  echo "coordinator# kill -9 (coordinator and relay)"
  kill_hard coordinator
  sleep 5
  start_coordinator
  wait "$train" || true
  cat "$state/train"
  if ! grep -q "60 packets transmitted, 60 received" "$state/train"; then echo "packets were lost"; exit 1; fi
}

show_status() {
  say "What each says of the other, and what the kernel says"
  on alice warren --socket "$state/alice.sock" status
  on bob warren --socket "$state/bob.sock" status
  on alice wg show warren0
  on coordinator warren-coordinator node list
}

# A running transfer loses its right; who asks why is told the line.
revocation() {
  local alice bob transfer
  alice=$(quiet on alice warren --socket "$state/alice.sock" ip -4)
  bob=$(quiet on bob warren --socket "$state/bob.sock" ip -4)
  say "A policy: alice may use bob's web server"
  write_policy "$alice" "$bob" 8000,22
  on coordinator warren-coordinator policy set "$state/policy.hujson"
  start bob warren-coordinator serve --state-dir "$state/web" --socket "$state/web.sock" --listen 0.0.0.0:8000 --relay false

  say "A transfer from there, over one connection, is running"
  until_true alice bash -c "exec 3<>/dev/tcp/$bob/8000"
  ip netns exec alice bash -c "$(declare -f transfer); transfer $bob" >"$state/transfer.txt" 2>&1 &
  transfer=$!
  until_true alice grep -q -m 20 "HTTP/1.1 200" "$state/transfer.txt"
  on bob warren --socket "$state/bob.sock" why alice self tcp/8000

  say "The right is taken away"
  write_policy "$alice" "$bob" 22
  on coordinator warren-coordinator policy set "$state/policy.hujson"
  local seconds=$SECONDS
  wait "$transfer" || true
  echo "the transfer ended $((SECONDS - seconds)) s later: $(tail -n 1 "$state/transfer.txt")"

  say "Why?"
  if on bob warren --socket "$state/bob.sock" why alice self tcp/8000; then echo "still allowed"; exit 1; fi
  on bob warren --socket "$state/bob.sock" acl
}

# Alice may open these ports of bob's.
write_policy() {
  printf '{\n  "hosts": {"alice": "%s", "bob": "%s"},\n  "acls": [\n' "$1" "$2" >"$state/policy.hujson"
  printf '    {"action": "accept", "src": ["alice"], "dst": ["bob:%s"]},\n  ],\n}\n' "$3" >>"$state/policy.hujson"
  cat -n "$state/policy.hujson"
}

# Asks for a page again and again over one connection, until that breaks or nothing comes for five seconds.
transfer() {
  trap '' PIPE
  exec 3<>"/dev/tcp/$1/8000"
  while printf 'GET /health HTTP/1.1\r\nHost: bob\r\n\r\n' >&3 && IFS= read -r -t 5 line <&3; do
    echo "$line"
    sleep 0.05
  done
}

# ---- hosts and programs ----

# The coordinator and the two routers are on one switch, the internet; each node is behind a router, and both have the
# same private address, as happens.
make_hosts() {
  ip netns add switch
  ip -n switch link add switch type bridge
  ip -n switch link set switch up
  plug coordinator 1
  router alice-router 11 alice
  router bob-router 12 bob
  bob_outside=198.51.100.12
}

plug() {
  local host=$1 number=$2
  ip netns add "$host"
  ip -n "$host" link set lo up
  ip -n switch link add "port$number" type veth peer name wan netns "$host"
  ip -n switch link set "port$number" master switch up
  ip -n "$host" address add "198.51.100.$number/24" dev wan
  ip -n "$host" link set wan up
}

router() {
  local router=$1 number=$2 node=$3
  plug "$router" "$number"
  ip netns add "$node"
  ip -n "$node" link set lo up
  ip -n "$router" link add lan type veth peer name eth0 netns "$node"
  ip -n "$router" address add 192.168.1.1/24 dev lan
  ip -n "$router" link set lan up
  ip -n "$node" address add 192.168.1.2/24 dev eth0
  ip -n "$node" link set eth0 up
  ip -n "$node" route add default via 192.168.1.1
  ip netns exec "$router" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
  ip netns exec "$router" nft '
    table ip nat {
      chain postrouting { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
      chain input { type filter hook input priority filter; iifname "wan" ct state new,invalid drop; }
      chain forward { type filter hook forward priority filter; iifname "wan" ct state new,invalid drop; }
    }'
}

start_coordinator() {
  start coordinator warren-coordinator serve --state-dir "$state/coordinator" --socket "$state/coordinator.sock"
  export WARREN_COORDINATOR_SOCKET=$state/coordinator.sock
  until_true coordinator warren-coordinator user list
}

say() { printf '\n== %s\n' "$*"; }

# Runs a command on a host, and shows it as it would be typed there.
on() {
  local host=$1; shift
  echo "$host# ${*//$state\//}" >&2
  ip netns exec "$host" "$@"
}

quiet() { "$@" 2>/dev/null; }

# Starts a program on a host; it goes on until the demonstration ends.
start() {
  local host=$1; shift
  echo "$host# ${*//$state\//} &"
  ip netns exec "$host" "$@" >>"$state/$host.log" 2>&1 &
  started+=("$host:$!")
}

stop() {
  local entry
  for entry in "${started[@]}"; do
    if [ "${entry%%:*}" = "$1" ]; then kill "${entry##*:}" && wait "${entry##*:}" || true; fi
  done
}

# Ends a host's programs at once, as a crash would.
kill_hard() {
  local entry
  for entry in "${started[@]}"; do
    if [ "${entry%%:*}" = "$1" ]; then kill -9 "${entry##*:}" 2>/dev/null && wait "${entry##*:}" 2>/dev/null || true; fi
  done
}

# Tries a command, silently, until it succeeds: for at most half a minute.
until_true() {
  local host=$1 tries; shift
  for tries in {1..60}; do
    if ip netns exec "$host" "$@" >/dev/null 2>&1; then return; fi
    sleep 0.5
  done
  echo "$host: still failing: $*" >&2
  cat "$state/$host.log" >&2
  exit 1
}

clean_up() {
  local status=$? entry host
  for entry in "${started[@]}"; do kill "${entry##*:}" 2>/dev/null || true; done
  wait
  if [ "$status" != 0 ]; then tail -n 20 "$state"/*.log >&2; fi
  for host in switch coordinator alice-router bob-router alice bob; do ip netns delete "$host" 2>/dev/null || true; done
  rm -rf /etc/netns/alice /etc/netns/bob
  rm -rf "$state"
}

main
