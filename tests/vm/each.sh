#!/bin/sh
# Runs COUNT test programs, each with the same arguments; fails when one of them failed.
#
#   each.sh COUNT PROGRAM... [ARGUMENT...]
count=$1; shift
status=0
programs=
while [ "$count" -gt 0 ]; do programs="$programs $1"; shift; count=$((count - 1)); done
for program in $programs; do
  echo "running ${program##*/}"
  "$program" "$@" || status=1
done
exit "$status"
