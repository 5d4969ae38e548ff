# What the scripts of this folder say facts with. Sourced on the machine that is tried.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
failed=0

# is WHAT COMMAND...: the fact holds where the command succeeds; else what it said is shown.
is() {
  local what=$1; shift
  if "$@" >/tmp/said 2>&1; then echo "ok: $what"; else echo "NOT OK: $what: $*"; sed 's/^/  | /' /tmp/said | tail -n 8; failed=1; fi
}
equals() { [ "$1" = "$2" ] || { echo "'$1' and not '$2'"; return 1; }; }
at_most() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && a <= b) }' || { echo "'$1' is not at most $2"; return 1; }; }
# Nothing is printed by the command.
nothing() { local said; said=$("$@" 2>&1); [ -z "$said" ] || { echo "$said"; return 1; }; }
# Waits until a command succeeds, as long as a slow machine may need.
soon() { local end=$((SECONDS + ${PATIENCE:-60})); until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done; }

# ---- units ----

property() { systemctl show --value -p "$1" "$2"; }
pid() { property MainPID "$1"; }
runs() { systemctl is-active --quiet "$1" || { systemctl status --no-pager -n 5 "$1"; return 1; }; }
stands_still() { equals "$(property ActiveState "$1")" inactive; }
# The same process as before, and not started anew meanwhile.
still() { runs "$1" && equals "$(pid "$1")" "$2"; }
renewed() { runs "$1" && [ "$(pid "$1")" != "$2" ] && [ "$(pid "$1")" != 0 ]; }
is_state() { equals "$(systemctl is-enabled "$1" 2>/dev/null)" "$2"; }
score() { systemd-analyze security --no-pager "$1" 2>/dev/null | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p'; }
# A setting of one test's: goes with `as_shipped`.
drop_in() { mkdir -p "/run/systemd/system/$1.service.d"; printf '%s\n' "${@:2}" >"/run/systemd/system/$1.service.d/test.conf"; systemctl daemon-reload; }
as_shipped() { rm -rf "/run/systemd/system/$1.service.d"; systemctl daemon-reload; }
log_since() { journalctl -q --no-pager -u "$1" --since "$2" -o cat; }
now() { date '+%F %T'; }

# ---- packages ----

dpkg_log=/tmp/dpkg
put_in() { dpkg -i "$@" </dev/null >$dpkg_log 2>&1 || { cat $dpkg_log; return 1; }; }
said() { grep -qF -- "$1" $dpkg_log || { cat $dpkg_log; return 1; }; }
said_not() { ! grep -F -- "$1" $dpkg_log; }
version_is() { equals "$(dpkg-query -W -f '${Version}' "$1")" "$2"; }
status_is() { equals "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1")" "$2"; }

# ---- files ----

owner() { equals "$(stat -c '%U:%G %a' "$1")" "$2"; }
# What of a package's files is not root's, or lets others write, or is more than a program or a text.
unusual_files() {
  dpkg -L "$1" | while read -r path; do
    stat -c '%F %U:%G %a %n' "$path"
  done | grep -Ev '^(directory root:root 755|regular( empty)? file root:root (644|755)|symbolic link root:root 777) '
}
