#!/usr/bin/env bash
# A real Slurm with two nodes of one core each on this one machine, for tests and trials. It keeps to a folder of its
# own and leaves an installed cluster alone.
#   tests/slurm_two_nodes.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf; sinfo
#   tests/slurm_two_nodes.sh stop FOLDER
# Needs root; installs Debian's slurm-wlm and munge where they are missing.
set -euo pipefail
folder=$(mkdir -p "$2" && cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf

start() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
  }
  mkdir -p "$folder/state"
  chmod 755 "$folder"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  local host port
  host=$(hostname)
  port=$((20000 + RANDOM % 10000))
  cat >"$SLURM_CONF" <<CONF
ClusterName=two
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/slurmd.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MpiDefault=none
KillWait=20
MessageTimeout=5
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
  slurmctld
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 100); do
    if [ "$(sinfo --noheader --states=idle --format=%D --partition=all 2>/dev/null)" = 2 ]; then return; fi
    sleep 0.2
  done
  echo "The nodes did not come up:" >&2
  sinfo >&2 || true
  tail -n 5 "$folder"/*.log >&2
  exit 1
}

stop() {
  for name in slurmd.n1 slurmd.n2 slurmctld munged; do
    if [ -s "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" || true; fi
  done
}

case "$1" in
start) start ;;
stop) stop ;;
*) echo "start or stop" >&2 && exit 2 ;;
esac
