#!/bin/bash
# What the packages are for, on a machine that has WireGuard and nothing of ours yet: two machines reach each other. Run as
# root inside it, by test.sh. The packages of two versions are in `new` and `old` beside this file, and README.md says what a
# user types. The second machine is a network namespace with an agent of its own, under the same unit.
cd "$(dirname "$0")" || exit
. ./facts.sh
PATIENCE=180
at_other=(ip netns exec other env WARREN_SOCKET=/run/other/warrend.sock)

main() {
  network
  signed_in
  if [ "$failed" = 0 ]; then
    exposures
    upgraded
    started_anew
    beside_networkd
  fi
  [ "$failed" != 0 ] || echo passed
  systemctl --no-block poweroff
}

# ---- two machines ----

# A link to the namespace.
network() {
  cat >/etc/systemd/system/other-network.service <<'END'
[Unit]
Before=other.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip netns add other
ExecStart=ip link add uplink type veth peer name uplink netns other
ExecStart=ip addr add 10.9.0.1/24 dev uplink
ExecStart=ip link set uplink up
ExecStart=ip -n other addr add 10.9.0.2/24 dev uplink
ExecStart=ip -n other link set uplink up
ExecStart=ip -n other link set lo up
[Install]
WantedBy=multi-user.target
END
  systemctl enable --quiet --now other-network
}

# The other machine's service is this one's, in the namespace and with a state of its own.
other_agent() {
  sed -e 's/^\(State\|Runtime\)Directory=warren$/\1Directory=other/' -e 's/^Before=.*/After=other-network.service/' \
    -e '/^\[Service\]/a NetworkNamespacePath=/run/netns/other\nEnvironment=WARREN_STATE_DIR=/var/lib/other WARREN_SOCKET=/run/other/warrend.sock' \
    "$(property FragmentPath warrend)" >/etc/systemd/system/other.service
  systemctl daemon-reload
  systemctl enable --quiet --now other
}

# What the README says, to the letter, on a machine that has nothing of ours. The older version is what is upgraded later.
signed_in() {
  local key server_key
  cd old || exit
  is "README: the coordinator's machine" typed 1
  key=$(grep -o '^warren-key-[0-9a-f-]*' /tmp/typed)
  server_key=$(sed -n 's/.*--coordinator-key \([^ ]*\).*/\1/p' /tmp/typed)
  is "README: a node" typed 2
  cd .. || exit
  is "the relay's package too" dpkg -i old/warren-relay_*.deb
  other_agent
  is "the other machine joins by the same key" \
    "${at_other[@]}" warren up --coordinator https://10.9.0.1:8080 --coordinator-key "$server_key" --auth-key "$key" --hostname other --timeout 90s
  [ "$failed" = 0 ] || return
  find_addresses
  is "two machines ping" soon ping -c 1 -W 2 "$there"
  is "and the other way" soon "${at_other[@]}" ping -c 1 -W 2 "$here"
  is "directly" soon eval 'warren status | grep -w other | grep -q 10.9.0.2:41741'
}

# typed N: the Nth block of the README's chapter, with its words in capitals filled in.
typed() {
  awk -v n="$1" '/^## /{ in_it = /^## Install/ } /^```/{ if (in_it) count++; next } in_it && count == 2 * n - 1' ../README.md |
    sed -e "s|https://COORDINATOR:|https://10.9.0.1:|; s|COORDINATOR-KEY|$server_key|; s|--auth-key KEY|--auth-key $key|" >/tmp/to-type
  [ -s /tmp/to-type ] || { echo "no block $1"; return 1; }
  bash -e /tmp/to-type </dev/null >/tmp/typed 2>&1 || { cat /tmp/typed; return 1; }
}

find_addresses() { here=$(warren ip -4) there=$("${at_other[@]}" warren ip -4); }

# ---- traffic ----

# A train of pings and a TCP stream that returns what it is sent; both until `arrived`.
depart() {
  systemctl is-active --quiet echo.socket || {
    printf '[Socket]\nListenStream=7000\nAccept=yes\n' >/run/systemd/system/echo.socket
    printf '[Service]\nExecStart=/bin/cat\nStandardInput=socket\n' >/run/systemd/system/echo@.service
    systemctl daemon-reload
    systemctl start echo.socket
  }
  rm -f /tmp/sent /tmp/received
  touch /tmp/under-way
  "${at_other[@]}" ping -i 0.05 "$here" >/tmp/train 2>&1 &
  train=$!
  "${at_other[@]}" bash -c '
    exec 3<>"/dev/tcp/$1/7000" || exit
    cat <&3 >/tmp/received & reader=$!
    while [ -e /tmp/under-way ]; do head -c 20000 /dev/urandom | tee -a /tmp/sent >&3 || break; sleep 0.05; done
    end=$((SECONDS + 30))
    until [ "$(stat -c %s /tmp/received)" = "$(stat -c %s /tmp/sent)" ] || [ $SECONDS -ge $end ]; do sleep 0.1; done
    kill $reader' stream "$here" &
  stream=$!
  soon eval '[ -s /tmp/received ]'
}

# arrived WHAT: both lost nothing.
arrived() {
  rm /tmp/under-way
  kill -INT "$train"
  wait "$train" "$stream" 2>/dev/null
  is "$1: $(grep -o '[0-9]* received' /tmp/train) of a train, none lost" nothing lost
  is "$1: $(stat -c %s /tmp/sent) bytes of a stream, none lost" cmp /tmp/sent /tmp/received
}

# Numbers of the train that did not come back, up to the last that did: one may be under way at its end.
lost() { sed -n 's/.*icmp_seq=\([0-9]*\) ttl.*/\1/p' /tmp/train | sort -n | awk '{ while (++last < $1) print last }'; }

# ---- what passes meanwhile ----

exposures() {
  depart
  is "agent's exposure with traffic, $(score warrend)" at_most "$(score warrend)" 1.7
  is "coordinator's exposure with traffic, $(score warren-coordinator)" at_most "$(score warren-coordinator)" 1.4
  arrived "under the units' sandbox"
  is "packets are worked on by threads" soon eval '[ "$(cat /sys/class/net/warren0/threaded)" = 1 ]'
}

upgraded() {
  local agent coordinator; agent=$(pid warrend) coordinator=$(pid warren-coordinator)
  depart
  is "three packages are upgraded" put_in new/warren*.deb
  is "the agent was started anew" renewed warrend "$agent"
  is "the coordinator was started anew" renewed warren-coordinator "$coordinator"
  is "both agents are connected again" soon eval 'warren status | grep -w other | grep -q direct'
  agent=$(pid warrend)
  echo WARREN_PORT=0 >/etc/default/warrend
  is "an upgrade with a broken setting" put_in old/warren_*.deb
  is "leaves the agent that runs" still warrend "$agent"
  rm /etc/default/warrend
  is "and the version of the tree again" put_in new/warren_*.deb
  arrived "through three upgrades"
}

started_anew() {
  local n
  depart
  for n in 1 2 3; do
    systemctl kill -s KILL warrend
    soon eval "[ \$(property NRestarts warrend) -ge $n ]"
    soon eval 'runs warrend >/dev/null'
  done
  is "the agent is killed thrice" runs warrend
  systemctl stop warrend
  is "it is stopped" stands_still warrend
  systemctl start warrend
  arrived "through kills, a stop and a start"
}

# With the agent gone nobody puts back what a restart of networkd takes away.
beside_networkd() {
  printf '[Match]\nName=uplink\n[Network]\nAddress=10.9.0.1/24\n' >/etc/systemd/network/10-uplink.network
  printf '[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\n' >/etc/systemd/network/50-all.network
  systemctl start systemd-networkd
  soon eval 'networkctl --no-pager list uplink | grep -q configured'
  systemctl stop warrend
  ours >/tmp/before
  systemctl restart systemd-networkd
  soon eval 'networkctl --no-pager list uplink | grep -q configured'
  is "networkd leaves the tunnel alone" eval 'networkctl --no-pager list warren0 | grep -q unmanaged'
  ours >/tmp/after
  is "our rules, routes and addresses are as before" eval 'grep -q 5310: /tmp/before && diff /tmp/before /tmp/after'
}

ours() {
  ip rule; ip -6 rule
  ip route show table all dev warren0; ip -6 route show table all dev warren0
  ip route show table all type unreachable; ip -o addr show dev warren0
}

main
