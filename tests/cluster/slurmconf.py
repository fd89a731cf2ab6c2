# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration files of a private cluster, as text.

Nothing here touches the machine. What each setting is for stands beside it,
because most of them differ from Slurm's defaults for one reason: a test must
not wait minutes for what a production cluster may take minutes over.
"""

import networks


def slurm_conf(c):
    """slurm.conf of cluster `c` (see cluster.Cluster)."""
    return f"""\
# Written by icp-cluster; gone with the cluster.
ClusterName={c.prefix}
SlurmctldHost=localhost({c.address})
SlurmctldPort={c.port_base}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# With the default cred_expire of 120 s a requeued job waits that long.
AuthInfo=socket={c.munge_socket},cred_expire=5

StateSaveLocation={c.state}/ctld
SlurmctldPidFile={c.state}/run/slurmctld.pid
SlurmctldLogFile={c.log_dir}/slurmctld.log
SlurmctldDebug={c.debug}
SlurmdSpoolDir={c.state}/spool/%n
SlurmdPidFile={c.state}/run/slurmd.%n.pid
SlurmdLogFile={c.log_dir}/slurmd.%n.log
SlurmdDebug={c.debug}
PlugStackConfig={c.conf_dir}/plugstack.conf
MailProg=/bin/true

ProctrackType=proctrack/{c.proctrack}
TaskPlugin={c.task_plugin}
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=10
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0

ReturnToService=2
SlurmdTimeout={c.slurmd_timeout}
SlurmctldTimeout=30
KillWait=2
UnkillableStepTimeout=20
JobRequeue=1
PrologFlags=Alloc,Contain
# CPUs= may exceed what the machine has.
SlurmdParameters=config_overrides
# A private cluster of an ordinary machine need not pin as much as its user may.
PropagateResourceLimitsExcept=MEMLOCK

{node_line(c)} CPUs={c.cpus} RealMemory={c.memory_mib} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
{c.extra_conf}
"""


def node_line(c):
    """What the nodes are called and where they are."""
    ports = f"{c.port_base + 1}-{c.port_base + c.nodes}"
    names = f"{c.prefix}n[1-{c.nodes}]"
    addresses = networks.address(1 if c.nodes == 1 else f"[1-{c.nodes}]")
    if c.nodes == 1:
        ports, names = str(c.port_base + 1), f"{c.prefix}n1"
    if c.networks:
        return f"NodeName={names} NodeHostname={names} NodeAddr={addresses} Port={c.port_base + 1}"
    return f"NodeName={names} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports}"


def cgroup_conf():
    """cgroup.conf: the hierarchies that are mounted already, nothing constrained."""
    return """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
"""


def plugstack_conf(plugin, requirement, arguments):
    """plugstack.conf naming one plugin, or an empty one if `plugin` is None."""
    if plugin is None:
        return "# no plugin\n"
    return f"{requirement} {plugin} {arguments}".rstrip() + "\n"


def icp_yaml(run_dir, more):
    """icp.yaml of a cluster of its own: what is pinned lies in the state directory."""
    return f"run_dir: {run_dir}\n{more}".rstrip() + "\n"


def coordinator_yaml(c):
    """The lines of icp.yaml by which icpctld of cluster `c` runs and is found."""
    return f"""\
coordinator: {c.coordinator_at or f"{c.coordinator_host}:{c.coordinator_port}"}
coordinator_user: root
munge_socket: {c.munge_socket}
listen: "{c.coordinator_host}:{c.coordinator_port}"
state_dir: {c.state}/icpctld
"""
