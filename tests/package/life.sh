#!/bin/bash
# The life of the packages on a machine of its own that has just booted and has no WireGuard: run as root inside it, by
# test.sh. Says a line for each fact, "passed" where all hold, and turns the machine off. States are asked for, not exit
# codes: dpkg succeeds also where a service is down.
#
#   life.sh NEW OLD CHAPTER...      NEW and OLD are folders with the packages of two versions
cd "$(dirname "$0")" || exit
. ./facts.sh
new=$1 old=$2; shift 2
services="warrend warren-coordinator"
all="warren warren-coordinator warren-relay"

# ---- the first day ----

installed() {
  is "three packages install" put_in "$new"/warren*.deb
  for package in $all; do
    is "$package: every file is root's, and none is more than a program or a text" nothing unusual_files "$package"
  done
  is "dpkg finds every file as it was packed" nothing dpkg --verify $all
  is "the agent's user cannot sign in" grep -qE '^warren:[^:]*:[0-9]{1,3}:.*:/usr/sbin/nologin$' /etc/passwd
  is "no other user was made" equals "$(grep -c warren /etc/passwd)" 1
  is "configuration is root's" owner /etc/warren/coordinator.toml 'root:root 644'
  is "man pages are there" ls /usr/share/man/man8/warrend.8.gz /usr/share/man/man1/warren.1.gz /usr/share/man/man7/warren-policy.7.gz
  is "the target for services is reached" eval 'systemctl start warren-online.target && runs warren-online.target'
  agent_before_up
  coordinator_without_configuration
  relay_without_configuration
}

agent_before_up() {
  is "the agent runs" runs warrend
  is "the agent comes with each boot" is_state warrend enabled
  is "it was started once" equals "$(property NRestarts warrend)" 0
  is "dpkg told what to type" said 'warren up'
  is "state is the agent's own" owner /var/lib/warren 'warren:warren 700'
  is "whoever tells the resolver is there to be asked" runs warren-dns.socket
  is "and by the agent alone" owner /run/warren-dns/socket 'root:warren 660'
  is "and puts the host back at each boot" is_state warren-dns.service enabled
  is "the socket's directory is open to see" owner /run/warren 'warren:warren 755'
  is "no key before somebody signs in" test ! -e /var/lib/warren/machine.key
  is "warren says that it waits for up" eval 'warren status 2>&1 | grep -q "warren up"'
  is "agent's exposure, $(score warrend)" at_most "$(score warrend)" 1.7
  is "it runs as its user" equals "$(stat -c %U "/proc/$(pid warrend)")" warren
  is "with two capabilities" equals "$(sed -n 's/^CapEff:[ \t]*//p' "/proc/$(pid warrend)/status")" 0000000000003000
  is "it listens at its own ports alone" equals "$(listeners warrend | sort -u | paste -sd" ")" "tcp 41744 udp 41741 udp 41742 udp 41743 udp 41744"
  before=$(pid warrend)
  is "a reload is no end" eval 'systemctl reload warrend && still warrend $before'
}

coordinator_without_configuration() {
  is "the coordinator runs" runs warren-coordinator
  is "the coordinator comes with each boot" is_state warren-coordinator enabled
  for line in 'warren-coordinator key create' 'warren-coordinator node list' 'warren-coordinator doctor'; do
    is "dpkg told to type $line" said "$line"
  done
  is "the coordinator answers" soon eval 'warren-coordinator status'
  is "its first key is made" eval 'warren-coordinator key create --user me --reusable | grep -q .'
  is "it listens at the two ports of its page" equals "$(listeners warren-coordinator | sort -u | paste -sd' ')" "tcp 8080 udp 3478"
  is "its state is its own" equals "$(stat -c %a /var/lib/private/warren-coordinator)" 700
  is "coordinator's exposure, $(score warren-coordinator)" at_most "$(score warren-coordinator)" 1.4
  before=$(pid warren-coordinator)
  is "a reload is no end" eval 'systemctl reload warren-coordinator && still warren-coordinator $before'
}

relay_without_configuration() {
  is "the relay waits to be configured" is_state warren-relay disabled
  is "dpkg told where" said /etc/default/warren-relay
  is "starting an unconfigured relay is no failure" systemctl start warren-relay
  is "it stands still then" stands_still warren-relay
  is "no unit has failed" nothing failed_units
}

# What a program listens at, as "udp 3478".
listeners() { ss -Hlntup | grep -F "\"${1:0:15}\"" | awk '{ print $1, $5 }' | sed 's/ .*:/ /'; }
failed_units() { systemctl --failed --no-legend --plain; }

# As the page on fleets says: a file, and the key in a credential.
joins_by_itself() {
  local hint=/tmp/hint
  is "without the file nobody joins" eval 'systemctl start warren-join && stands_still warren-join'
  is "a key for machines that leave nothing" eval "warren-coordinator key create --user me --ephemeral >/tmp/key 2>$hint"
  install -d -m 700 /etc/credstore
  mv /tmp/key /etc/credstore/warren.auth-key
  cat >/etc/warren/join <<END
WARREN_COORDINATOR=http://127.0.0.1:8080
WARREN_COORDINATOR_KEY=$(sed -n 's/.*--coordinator-key \([^ ]*\).*/\1/p' $hint)
WARREN_AUTH_KEY=file:/run/credentials/warren-join.service/warren.auth-key
END
  chmod 600 /etc/warren/join
  is "with it the machine joins" eval 'systemctl start warren-join && soon eval "warren-coordinator node list | grep -q warren-test"'
  is "it has a key now" soon test -e /var/lib/warren/node.key
  is "and does not join again" eval 'systemctl stop warren-join; systemctl start warren-join && stands_still warren-join'
  is "agent's exposure in a network, $(score warrend)" at_most "$(score warrend)" 1.7
  rm -r /etc/credstore/warren.auth-key /etc/warren/join
  is "it leaves" eval 'warren logout && soon eval "! warren-coordinator node list | grep -q warren-test"'
}

# Ten of each within ten seconds or so: what an upgrade storm or a crash loop comes to.
never_given_up() {
  local service n
  for service in $services; do
    for n in 1 2 3 4 5 6 7 8 9 10; do systemctl restart "$service" || break; done
    is "$service runs after ten restarts" runs "$service"
    for n in 1 2 3 4 5 6 7 8 9 10; do
      systemctl kill -s KILL "$service"
      soon eval "[ \$(property NRestarts $service) -ge $n ]" || break
    done
    is "$service runs after ten kills" soon runs "$service"
  done
}

# A loop that hangs is noticed. (The patience is shortened; that the loop beats in time is what this shows.)
watched() {
  local service before beat
  for service in $services; do
    drop_in "$service" '[Service]' WatchdogSec=8s
    systemctl restart "$service"
    before=$(pid "$service")
    beat=$(property WatchdogTimestampMonotonic "$service")
    is "$service beats" soon eval "[ \$(property WatchdogTimestampMonotonic $service) != $beat ]"
    is "$service that beats is left alone" still "$service" "$before"
    kill -STOP "$before"
    is "$service that hangs is started anew" soon eval "renewed $service $before"
    as_shipped "$service"
  done
  systemctl restart $services
}

# ---- versions that come and go ----

upgraded() {
  local agent coordinator queue
  agent=$(pid warrend) coordinator=$(pid warren-coordinator) queue=$(relay_queue)
  is "an older version installs" put_in "$old"/warren*.deb
  is "the agent was started anew" renewed warrend "$agent"
  is "the coordinator was started anew" renewed warren-coordinator "$coordinator"
  is "the relay still stands still" stands_still warren-relay
  agent=$(pid warrend)
  is "and the newer one" put_in "$new"/warren*.deb
  is "the agent was started anew again" renewed warrend "$agent"
  is "the coordinator runs" runs warren-coordinator
  is "nothing was asked" said_not 'Configuration file'
  is "nobody was told what to type first" said_not 'key create'
  is "no unit has failed" nothing failed_units
  agent=$(pid warrend)
  is "the same version again" put_in "$new"/warren_*.deb
  is "starts the agent anew" renewed warrend "$agent"
  agent=$(pid warrend)
  systemctl kill -s KILL warrend
  is "and so does its end" soon renewed warrend "$agent"
  is "where packets for relayed peers wait is the same all along" soon eval '[ -n "$(relay_queue)" ] && equals "$(relay_queue)" '"'$queue'"
}

# The number that the kernel knows the socket by.
relay_queue() { ss -Huane 'sport = 41742' 2>/dev/null | grep -o 'ino:[0-9]*'; }

# An edited file stays, also where the package brings another one.
edited_configuration() {
  local conf=/etc/warren/coordinator.toml
  echo '# mine' >>$conf
  is "an upgrade beside an edited configuration" put_in "$old"/warren-coordinator_*.deb
  is "keeps the edit" grep -q '# mine' $conf
  repacked warren-coordinator 9.0.0 'echo "# theirs" >>etc/warren/coordinator.toml'
  is "a changed file beside an edited one, as unattended upgrades install it" \
    eval 'apt-get -qq -y --allow-downgrades -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install /tmp/repacked.deb </dev/null'
  is "keeps the edit too" grep -q '# mine' $conf
  is "and lays the other beside it" grep -q '# theirs' $conf.dpkg-dist
  is "the coordinator runs" runs warren-coordinator
  repacked warren-coordinator 9.0.1 'echo "# theirs too" >>etc/warren/coordinator.toml'
  local before; before=$(pid warren-coordinator)
  is "dpkg that can ask nobody stops there" eval '! put_in /tmp/repacked.deb'
  is "what runs goes on" still warren-coordinator "$before"
  is "and the upgrade is finished later" eval 'dpkg --force-confold --configure -a </dev/null'
  is "the coordinator was started anew" renewed warren-coordinator "$before"
  is "back to the version of the tree" eval 'dpkg --force-confnew -i "$new"/warren-coordinator_*.deb </dev/null'
  is "with its configuration" nothing dpkg --verify warren-coordinator
  rm -f $conf.dpkg-*
}

# repacked PACKAGE VERSION COMMAND: a package as of another version, changed by a command in its root.
repacked() {
  rm -rf /tmp/repack
  dpkg-deb -R "$new"/"$1"_[0-9]*.deb /tmp/repack
  sed -i "s/^Version:.*/Version: $2/" /tmp/repack/DEBIAN/control
  (cd /tmp/repack && eval "$3")
  (cd /tmp/repack && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
  dpkg-deb -Zgzip -z1 --root-owner-group -b /tmp/repack /tmp/repacked.deb >/dev/null
  rm -rf /tmp/repack
}

broken_settings() {
  local before
  before=$(pid warrend)
  echo WARREN_PORT=0 >/etc/default/warrend
  is "an upgrade with a broken setting" put_in "$old"/warren_*.deb
  is "is installed" status_is warren 'ii '
  is "leaves the agent that runs" still warrend "$before"
  is "says what is broken" said "invalid value '0' for '--port"
  is "and what to type" said 'systemctl restart warrend'
  rm /etc/default/warrend
  is "the agent starts once it is mended" eval "systemctl restart warrend && renewed warrend $before"
  before=$(pid warrend)
  drop_in warrend '[Service]' 'Environment=WARREN_MAX_MAP_AGE=soon'
  is "an upgrade with a broken setting of a drop-in" put_in "$new"/warren_*.deb
  is "leaves the agent that runs" still warrend "$before"
  as_shipped warrend
  before=$(pid warren-coordinator)
  cp /etc/warren/coordinator.toml /tmp/
  echo 'listn = 1' >>/etc/warren/coordinator.toml
  is "an upgrade with a broken configuration" put_in "$old"/warren-coordinator_*.deb
  is "leaves the coordinator that runs" still warren-coordinator "$before"
  is "and names the word" said listn
  is "a reload with it" eval 'systemctl reload warren-coordinator; true'
  is "leaves it too" still warren-coordinator "$before"
  cp /tmp/coordinator.toml /etc/warren/
  is "back to the new versions" put_in "$new"/warren*.deb
}

decisions_of_the_administrator() {
  systemctl stop warrend
  is "an upgrade of a stopped agent" put_in "$old"/warren_*.deb
  is "leaves it stopped" stands_still warrend
  is "and enabled" is_state warrend enabled
  systemctl disable --quiet --now warrend
  is "an upgrade of a disabled agent" put_in "$new"/warren_*.deb
  is "leaves it disabled" is_state warrend disabled
  is "and stopped" stands_still warrend
  systemctl start warrend
  local before; before=$(pid warrend)
  is "an upgrade of a disabled agent that runs" put_in "$old"/warren_*.deb
  is "leaves it disabled" is_state warrend disabled
  is "and starts it anew" renewed warrend "$before"
  systemctl stop warrend
  systemctl mask --quiet warrend
  is "an upgrade of a masked agent" put_in "$new"/warren_*.deb
  is "leaves it masked" is_state warrend masked
  is "and stopped" stands_still warrend
  systemctl unmask --quiet warrend
  systemctl enable --quiet --now warrend
  is "and it comes back" runs warrend
}

# An upgrade that is killed half-way leaves what runs, and is finished later.
killed_upgrade() {
  local before; before=$(pid warrend)
  repacked warren 9.0.0 'sed -i "2i [ \"\$1\" != configure ] || kill -KILL \$PPID" DEBIAN/postinst'
  is "dpkg that is killed while it configures" eval '! put_in /tmp/repacked.deb'
  is "leaves the agent that runs" still warrend "$before"
  is "which also starts anew" eval 'systemctl restart warrend && runs warrend'
  is "and the next version is installed" put_in "$new"/warren_*.deb
  is "as it should be" status_is warren 'ii '
  is "and runs" runs warrend
}

full_disk() {
  local before; before=$(pid warrend)
  mount -t tmpfs -o size=64k full /usr/share/doc/warren || return
  head -c 1m /dev/zero >/usr/share/doc/warren/filler 2>/dev/null
  is "an upgrade on a full disk fails" eval '! put_in "$old"/warren_*.deb'
  is "and the agent runs on" still warrend "$before"
  is "also through a restart" eval "systemctl restart warrend && renewed warrend $before"
  umount /usr/share/doc/warren
  is "the same upgrade succeeds later" put_in "$old"/warren_*.deb
  is "and back" put_in "$new"/warren_*.deb
}

# What a newer version left is not read by this one, and an upgrade to an older one leaves the newer one at work.
newer_state() {
  local before since; before=$(pid warrend)
  echo 2 >/var/lib/warren/format
  chown warren: /var/lib/warren/format; chmod 600 /var/lib/warren/format
  is "an older version beside a newer one's state" put_in "$old"/warren_*.deb
  is "leaves the newer one that runs" still warrend "$before"
  is "and says so" said 'a newer version of warrend'
  since=$(now)
  is "it does not start" eval 'systemctl stop warrend; ! systemctl start warrend && ! runs warrend'
  is "nor is it tried again and again" equals "$(property NRestarts warrend)" 0
  is "and says why" eval "log_since warrend '$since' | grep -q 'a newer version of warrend'"
  rm /var/lib/warren/format
  is "without it, it does" eval 'systemctl restart warrend && runs warrend'
  is "back" put_in "$new"/warren_*.deb
}

newer_database() {
  local dir=/var/lib/private/warren-coordinator before since; before=$(pid warren-coordinator)
  mv $dir/coordinator.sqlite $dir/aside
  # A table of SQLite's with one number in it: schema 9000.
  base64 -d <<END | gzip -d >$dir/coordinator.sqlite
H4sIAAAAAAACAwsO9MksSVVIyy/KTSxRMGZgYmBkZHBQUGBgYGAGYiYGBACxWZD4jAyEATODXjIjL0gx42oGIBoF5INgRjZxXV3G6JLEpJzU+OLCnIr4
3Mz0osSSzPy8YnQ+k3OQq2OIq0KIo5OPqwK6rIJGWWpRMZClCYmbXwxANApGFGBhZGJS1gAAn0dr6wAEAAA=
END
  chown --reference $dir/aside $dir/coordinator.sqlite; chmod 600 $dir/coordinator.sqlite
  is "an older coordinator beside a newer one's database" put_in "$old"/warren-coordinator_*.deb
  is "leaves the newer one that runs" still warren-coordinator "$before"
  is "and says so" said 'a newer warren-coordinator wrote it (schema 9000'
  is "its state is its own still" equals "$(stat -c %a $dir)" 700
  since=$(now)
  is "it does not start" eval 'systemctl stop warren-coordinator; ! systemctl start warren-coordinator'
  is "nor is it tried again and again" equals "$(property NRestarts warren-coordinator)" 0
  is "and says why" eval "log_since warren-coordinator '$since' | grep -q 'schema 9000'"
  mv $dir/aside $dir/coordinator.sqlite
  is "with its own, it does" eval 'systemctl restart warren-coordinator && runs warren-coordinator'
  is "and so it is back" put_in "$new"/warren-coordinator_*.deb
}

# ---- what a host has done to it ----

wrong_owners() {
  local since
  systemctl stop warrend
  chown root:root /var/lib/warren; chmod 755 /var/lib/warren
  is "a state directory of another owner is taken back" eval 'systemctl start warrend && owner /var/lib/warren "warren:warren 700"'
  echo '{}' >/var/lib/warren/prefs.json; chmod 644 /var/lib/warren/prefs.json; chown warren: /var/lib/warren/prefs.json
  since=$(now)
  systemctl restart warrend
  is "a file of the state that others can read is refused in words" soon eval "log_since warrend '$since' | grep -q 'mode 644 lets others in'"
  rm /var/lib/warren/prefs.json
  is "and the agent comes back by itself once it is mended" soon runs warrend
}

foreign_services() {
  systemctl stop warrend warren-coordinator
  systemd-run --quiet --unit foreign systemd-socket-activate --datagram -l 0.0.0.0:41741 /bin/cat
  soon eval 'ss -Hlnu | grep -q :41741'
  is "the agent starts beside a service on its port" eval 'systemctl start warrend && runs warrend'
  is "and says whose it is" soon eval 'warren status 2>&1 | grep -q 41741'
  systemctl stop foreign
  systemd-run --quiet --unit foreign systemd-socket-activate -l 0.0.0.0:8080 /bin/cat
  soon eval 'ss -Hlnt | grep -q :8080'
  local since; since=$(now)
  systemctl start --no-block warren-coordinator
  is "the coordinator says whose port it wants" soon eval "log_since warren-coordinator '$since' | grep -q 8080"
  systemctl stop foreign
  is "and serves once the port is free" soon runs warren-coordinator
}

# A host that cannot make IPv6 sockets at all.
without_ipv6() {
  drop_in warrend '[Service]' RestrictAddressFamilies= 'RestrictAddressFamilies=AF_INET AF_NETLINK AF_UNIX'
  drop_in warren-coordinator '[Service]' RestrictAddressFamilies= 'RestrictAddressFamilies=AF_INET AF_UNIX'
  is "both start without IPv6" eval 'systemctl restart $services && runs warrend && runs warren-coordinator'
  is "the coordinator answers" soon eval 'warren-coordinator status'
  as_shipped warrend
  as_shipped warren-coordinator
  systemctl restart $services
}

read_only() {
  local before; before=$(pid warrend)
  mount --bind / /mnt && mount -o remount,bind,ro /mnt || return
  is "an upgrade of a system that is read-only fails" eval '! unshare -m sh -c "mount --rbind /mnt /mnt; mount -o remount,bind,ro /; dpkg -i $old/warren_*.deb </dev/null"'
  is "and the agent runs on" still warrend "$before"
  umount /mnt
  systemctl stop warrend
  mount --bind /var/lib/warren /var/lib/warren && mount -o remount,bind,ro /var/lib/warren
  is "the agent starts where its state cannot be written" eval 'systemctl start warrend && runs warrend'
  is "and says so where something is to be kept" eval 'warren set --hostname other 2>&1 | grep -qi "read-only"'
  systemctl stop warrend
  umount /var/lib/warren
  systemctl start warrend
}

# ---- the end ----

removed_and_purged() {
  touch /var/lib/warren/kept && chown warren: /var/lib/warren/kept
  is "packages are removed" eval 'dpkg -r $all </dev/null'
  is "nothing runs" eval '! pgrep "^warren"'
  is "nothing has failed" nothing failed_units
  is "state is kept" test -e /var/lib/warren/kept
  is "nothing of ours is in the kernel" nothing left_in_kernel
  is "they come back with their state" eval 'put_in "$new"/warren*.deb && runs warrend && test -e /var/lib/warren/kept'
  is "the coordinator knows whom it knew" soon eval 'warren-coordinator key list | grep -q me'
  is "packages are purged" eval 'dpkg -P $all </dev/null'
  is "state is gone" nothing find /var/lib /run -path /var/lib/dpkg -prune -o -name 'warren*' -print
  is "no file of ours is left" nothing find /etc /usr /var/lib/systemd -name '*warren*'
  is "the user stays, as whose files there may be" grep -q ^warren: /etc/passwd
  is "nothing of ours is in the kernel" nothing left_in_kernel
  is "no unit is left" nothing systemctl list-units --all --no-legend 'warren*'
  is "purging what is not there is no error" eval 'dpkg -P $all </dev/null'
}

left_in_kernel() {
  ip -o link show warren0
  nft list table inet warren
  ip rule | grep -E '^(52|53)[0-9][0-9]:'
} 2>/dev/null

# Somebody of that name who signs in was here before the package.
somebody_called_warren() {
  sed -i '/^warren:/d' /etc/passwd /etc/shadow /etc/group
  useradd -m -s /bin/bash -u 1042 warren
  is "beside a user of that name the package installs" put_in "$new"/warren_*.deb
  is "and the agent runs" runs warrend
  is "dpkg says that somebody signs in as whom the agent runs" said 'can sign in'
  is "their shell is theirs" grep -q '^warren:.*:/bin/bash$' /etc/passwd
  is "purging" eval 'dpkg -P warren </dev/null'
  is "leaves them and their home" eval 'grep -q "^warren:.*/bin/bash" /etc/passwd && owner /home/warren "warren:warren $(stat -c %a /home/warren)"'
}

for chapter; do "$chapter"; done
[ "$failed" != 0 ] || echo passed
systemctl --no-block poweroff
