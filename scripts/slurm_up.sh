#!/usr/bin/env bash
# Start a real SLURM on one Debian machine, for tests and for trying out sweeps: munged, slurmctld and several slurmd,
# without systemd or cgroups, so it works in a container. Needs root; installs missing packages with apt.
#
#   NODES=2          number of slurmd daemons, named n0, n1, ...
#   CPUS_PER_NODE=1  CPUs of each node; may exceed those of the machine
#   ACCOUNTING=0     1: also MariaDB and slurmdbd, for sacct
#   GRACE=20         seconds between the signal of a preemption and the kill
#   REQUEUE_DELAY=5  seconds that a requeued job waits (SLURM's default is 120)
#
# Jobs of partition `main` are preempted (and requeued) by those of partition `urgent`. Call it again to restart daemons
# that are down, or to change settings. Stop it with slurm_down.sh. With --install it only installs what is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
NODES=${NODES:-2} CPUS_PER_NODE=${CPUS_PER_NODE:-1} ACCOUNTING=${ACCOUNTING:-0} GRACE=${GRACE:-20}
REQUEUE_DELAY=${REQUEUE_DELAY:-5}
STATE=${ESPER_SLURM_STATE:-/var/tmp/esper-slurm}
MARK="# Written by Esper's slurm_up.sh"

fail() { echo "slurm_up: $1" >&2; exit 1; }

refuse_another_cluster() {
  [ "$(id -u)" = 0 ] || fail "needs root: slurmctld and slurmd run as root here"
  local file
  for file in slurm slurmdbd cgroup; do
    file=/etc/slurm/$file.conf
    [ ! -s "$file" ] || grep -q "^$MARK" "$file" || fail "$file was not written by this script: this machine already has a SLURM"
  done
}

install_packages() {
  local missing=()
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null || missing+=(slurm-wlm)
  command -v munged >/dev/null || missing+=(munge)
  if [ "$ACCOUNTING" = 1 ]; then
    command -v slurmdbd >/dev/null || missing+=(slurmdbd)
    command -v mariadbd >/dev/null || missing+=(mariadb-server)
  fi
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || fail "cannot install ${missing[*]}: no apt-get"
  # Keep the packages from starting their daemons.
  local policy=/usr/sbin/policy-rc.d added=0
  if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; added=1; fi
  local status=0
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >"$STATE/log/apt.log" 2>&1 || status=$?
  [ $added = 0 ] || rm -f $policy
  [ $status = 0 ] || { tail -n 20 "$STATE/log/apt.log" >&2; fail "cannot install ${missing[*]}"; }
}

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

wait_for() { # command, seconds
  local tries=$((10 * ${2:-15}))
  while [ $tries -gt 0 ]; do
    if eval "$1" >/dev/null 2>&1; then return 0; fi
    tries=$((tries - 1)); sleep 0.1
  done
  tail -n 5 "$STATE"/log/*.log >&2
  fail "timed out after ${2:-15} s waiting for: $1"
}

munge_up() { # Own key, socket and PID file, to leave an existing munged alone.
  local dir=$STATE/munge
  install -d -m 755 "$dir"
  [ -s "$dir/key" ] || (umask 077; head -c 1024 /dev/urandom >"$dir/key")
  alive "$STATE/run/munged.pid" || munged --force --key-file="$dir/key" --socket="$dir/socket" \
    --seed-file="$dir/seed" --log-file="$STATE/log/munged.log" --pid-file="$STATE/run/munged.pid"
  wait_for "munge --socket=$dir/socket -n | unmunge --socket=$dir/socket"
}

accounting_up() {
  local sock=$STATE/mariadb/socket
  if ! alive "$STATE/mariadb/pid"; then
    install -d -o mysql -g mysql -m 750 "$STATE/mariadb"
    [ -d "$STATE/mariadb/mysql" ] || mariadb-install-db --no-defaults --user=mysql --datadir="$STATE/mariadb" \
      --auth-root-authentication-method=socket >"$STATE/log/mariadb-install.log" 2>&1
    setsid nohup mariadbd --no-defaults --user=mysql --datadir="$STATE/mariadb" --socket="$sock" \
      --pid-file="$STATE/mariadb/pid" --skip-networking --innodb-buffer-pool-size=64M \
      --innodb-lock-wait-timeout=900 </dev/null >"$STATE/log/mariadb.log" 2>&1 &
  fi
  wait_for "mariadb-admin --no-defaults --socket=$sock ping" 30
  mariadb --no-defaults --socket="$sock" -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db"
  cat >/etc/slurm/slurmdbd.conf <<CONF
$MARK
AuthType=auth/munge
AuthInfo=socket=$STATE/munge/socket
DbdHost=localhost
DbdPort=16819
SlurmUser=root
LogFile=$STATE/log/slurmdbd.log
PidFile=$STATE/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
  chmod 600 /etc/slurm/slurmdbd.conf
  alive "$STATE/run/slurmdbd.pid" || MYSQL_UNIX_PORT=$sock slurmdbd
  wait_for "exec 3<>/dev/tcp/127.0.0.1/16819" 30
}

slurm_conf() {
  local host last memory accounting="AccountingStorageType=accounting_storage/none"
  host=$(hostname -s) last=$((NODES - 1))
  memory=$(($(awk '/^MemTotal/{print int($2 / 1024)}' /proc/meminfo) / NODES - 256))
  [ "$ACCOUNTING" = 0 ] || accounting=$'AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=localhost\nAccountingStoragePort=16819'$'\nAccountingStoragePass='$STATE/munge/socket
  cat <<CONF
$MARK
ClusterName=esper
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$STATE/munge/socket,cred_expire=$REQUEUE_DELAY
StateSaveLocation=$STATE/slurmctld
SlurmdSpoolDir=$STATE/slurmd-%n
SlurmctldPidFile=$STATE/run/slurmctld.pid
SlurmdPidFile=$STATE/run/slurmd-%n.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=30
OverTimeLimit=0
MinJobAge=300
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
$accounting
NodeName=n[0-$last] NodeAddr=127.0.0.1 NodeHostname=$host Port=[17000-$((17000 + last))] CPUs=$CPUS_PER_NODE RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=$GRACE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

nodes_up() {
  local node
  for node in $(seq 0 $((NODES - 1))); do
    mkdir -p "$STATE/slurmd-n$node"
    alive "$STATE/run/slurmd-n$node.pid" || slurmd -N "n$node"
  done
  wait_for "[ \$(sinfo -h -N -p main -t idle,mix,alloc -o %N | wc -l) = $NODES ]" 30
}

refuse_another_cluster
mkdir -p /etc/slurm "$STATE"/{log,run,slurmctld}
chmod 755 "$STATE" "$STATE/run"
install_packages
[ "${1:-}" != --install ] || exit 0

conf=$(slurm_conf)
if [ -s /etc/slurm/slurm.conf ] && [ "$(cat /etc/slurm/slurm.conf)" != "$conf" ]; then
  "$here/slurm_down.sh" >/dev/null # running daemons keep their old settings
fi
printf '%s\n' "$conf" >/etc/slurm/slurm.conf
printf '%s\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n' "$MARK" >/etc/slurm/cgroup.conf
munge_up
[ "$ACCOUNTING" = 0 ] || accounting_up
alive "$STATE/run/slurmctld.pid" || slurmctld -i
wait_for "scontrol ping | grep -q UP"
nodes_up
[ "$ACCOUNTING" = 0 ] || wait_for "sacct -n"
sinfo
