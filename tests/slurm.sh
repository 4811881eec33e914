#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, for tests: `slurm.sh up` and `slurm.sh down`. Takes root and Debian's
# packages, which it installs; no systemd, cgroups or GPUs. Each node says that it has 2 GPUs, which are files: jobs get
# them counted and CUDA_VISIBLE_DEVICES set. Everything listens on 127.0.0.1 alone.
set -euo pipefail

packages=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge)
nodes=(node1 node2)
state=/var/lib/slurm/loopback

running() { # a pid file names a process that lives; without an init, a dead one may stay as a zombie
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -r "/proc/$pid/stat" ] && ! grep -q ') Z ' "/proc/$pid/stat"
}

wait_for() { # COMMAND...: at most 20 s
    for _ in $(seq 100); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    echo "slurm.sh: gave up on: $*; see /var/log/slurm" >&2
    exit 1
}

install() {
    dpkg-query -W "${packages[@]}" >/dev/null 2>&1 && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
}

start_munge() { # authenticates the daemons to each other
    command install -d -o munge -g munge /run/munge
    if [ ! -s /etc/munge/munge.key ]; then
        mungekey --create
        chown munge: /etc/munge/munge.key
    fi
    running /run/munge/munged.pid || setpriv --reuid munge --regid munge --clear-groups munged --force
    wait_for munge -n
}

configure() {
    command install -d -o slurm -g slurm /etc/slurm /run/slurm /var/log/slurm "$state" "$state/controller"
    local node
    for node in "${nodes[@]}"; do command install -d "$state/$node"; done
    touch "$state/gpu0" "$state/gpu1"
    cat >/etc/slurm/slurm.conf <<CONF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=slurm
SlurmdUser=root
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
# there are no cgroups: memory is polled, and a job above its request is killed
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
# as many cores, and as much memory, as the line of the nodes says, whatever the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=2
# finished jobs are known to squeue for so long
MinJobAge=900
ReturnToService=2
GresTypes=gpu
NodeName=node[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[17101-17102] CPUs=16 RealMemory=16000 Gres=gpu:toy:2
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 State=UP
CONF
    echo "NodeName=node[1-2] Name=gpu Type=toy File=$state/gpu[0-1]" >/etc/slurm/gres.conf
    # this version of Slurm loads one even if nothing uses it
    echo "CgroupPlugin=cgroup/v1" >/etc/slurm/cgroup.conf
}

start() {
    local node
    running /run/slurm/slurmctld.pid || slurmctld
    wait_for scontrol ping
    for node in "${nodes[@]}"; do running "/run/slurm/$node.pid" || slurmd -N "$node"; done
    wait_for timeout 5 srun --quiet --nodes "${#nodes[@]}" --mem 1 true
}

stop() {
    local daemon
    for daemon in "${nodes[@]/#//run/slurm/}" /run/slurm/slurmctld /run/munge/munged; do
        running "$daemon.pid" && kill "$(cat "$daemon.pid")"
    done
    for daemon in "${nodes[@]/#//run/slurm/}" /run/slurm/slurmctld; do
        while running "$daemon.pid"; do sleep 0.1; done
    done
}

case "${1:-}" in
up)
    install
    start_munge
    configure
    start
    ;;
down) stop ;;
*)
    echo "usage: $0 up|down" >&2
    exit 2
    ;;
esac
