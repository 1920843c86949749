#!/usr/bin/env bash
# A Slurm of one node on this machine, for the tests marked `slurm`. Debian or Ubuntu, as root.
#
#   tests/slurm.sh run [COMMAND …]    installs what is missing, starts Slurm, runs the tests (or COMMAND), stops Slurm
#   tests/slurm.sh up | down          the same in steps; then: export SLURM_CONF=/tmp/bjax-slurm/slurm.conf
#
# Everything lives in one folder (BJAX_SLURM_DIR), with ports and a munge key of its own: a Slurm that the machine may
# already belong to is not touched.
set -euo pipefail
dir=${BJAX_SLURM_DIR:-/tmp/bjax-slurm}
export SLURM_CONF=$dir/slurm.conf

install() {
  command -v slurmctld slurmd munged sbatch >/dev/null && return
  apt-get update -qq
  # Services are not to start by themselves: Debian's would look for a cluster's configuration.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
  rm /usr/sbin/policy-rc.d
}

up() {
  install
  down
  mkdir -p "$dir"/{state,spool,munge}
  chmod 755 "$dir" "$dir/munge"
  head -c 128 /dev/urandom >"$dir/munge.key"
  chmod 600 "$dir/munge.key"
  # task/none and linuxproc: neither cgroups nor systemd. cred_expire: a requeued job waits that long.
  cat >"$SLURM_CONF" <<EOF
ClusterName=bjax
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
MailProg=/bin/true
ReturnToService=2
KillWait=120
NodeName=localhost NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=4
PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP
EOF
  munged --force --socket="$dir/munge/socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
  slurmctld -c
  slurmd -N localhost
  for _ in $(seq 60); do
    if [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]; then return; fi
    sleep 0.5
  done
  echo "tests/slurm.sh: the node did not come up; see $dir/*.log" >&2
  tail -n 20 "$dir"/*.log >&2
  return 1
}

down() {
  for name in slurmd slurmctld munged; do
    if [[ -f $dir/$name.pid ]]; then
      pid=$(<"$dir/$name.pid")
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
      done
    fi
  done
  rm -rf "$dir"
}

case ${1:-} in
  up) up ;;
  down) down ;;
  run)
    shift
    trap down EXIT
    up
    if (($# == 0)); then set -- "${PYTHON:-python}" -m pytest -q -m slurm; fi
    "$@"
    ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
