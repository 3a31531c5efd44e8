#!/usr/bin/env bash
# Stop the daemons that slurm_up.sh started, by their PID files, after cancelling all jobs. --purge also removes state and
# settings.
set -uo pipefail
STATE=${ESPER_SLURM_STATE:-/var/tmp/esper-slurm}
MARK="# Written by Esper's slurm_up.sh"

runs() { # PID file, command of the process
  [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]
}

stop() {
  local pid
  if runs "$1" "$2"; then
    pid=$(cat "$1")
    kill "$pid"
    for _ in $(seq 1 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
    [ ! -d "/proc/$pid" ] || kill -9 "$pid"
  fi
  rm -f "$1"
}

if grep -qs "^$MARK" /etc/slurm/slurm.conf && runs "$STATE/run/slurmctld.pid" slurmctld; then
  scancel --user="$(id -un)" 2>/dev/null
  for _ in $(seq 1 100); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
fi
for file in "$STATE"/run/slurmd-*.pid; do stop "$file" slurmd & done
stop "$STATE/run/slurmctld.pid" slurmctld &
wait # in parallel: each takes seconds
stop "$STATE/run/slurmdbd.pid" slurmdbd
stop "$STATE/mariadb/pid" mariadbd &
stop "$STATE/run/munged.pid" munged &
wait
if [ "${1:-}" = --purge ]; then
  rm -rf "$STATE"
  for file in slurm slurmdbd cgroup; do
    grep -qs "^$MARK" "/etc/slurm/$file.conf" && rm -f "/etc/slurm/$file.conf"
  done
fi
echo "slurm down"
