// SPDX-License-Identifier: GPL-2.0-or-later
// Control groups as Slurm lays them out: v1 /sys/fs/cgroup/<controllers>/slurm_<node>/uid_U/job_J/step_S, v2
// /sys/fs/cgroup/.../<node>_slurmstepd.scope/job_J/step_S.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace icp {

struct CgroupPlace {
  std::string controllers;        // "" for v2
  std::string path;               // "/slurm_node1/uid_1000/job_7/step_0"
  std::string directory() const;  // below /sys/fs/cgroup
};
std::vector<CgroupPlace> cgroups_of(pid_t pid);

// Moves the calling process out of the job's groups, to where slurmd keeps its own: a step's freezer, its signals and
// its memory limit are the tasks' and not the agent's. Groups that cannot be left are kept.
void leave_job_cgroups(uint32_t job);

// Puts `pid` into every group of `like`. Throws Error naming the group that does not take it.
void join_cgroups(pid_t pid, pid_t like);

// Whom slurmstepd signals (scancel -s, and SIGTERM before SIGKILL), which depends on ProctrackType. SIGKILL reaches
// everything that is in the step's cgroup, where there is one.
enum class Signalled {
  kTask,    // proctrack/cgroup: slurmstepd's own children
  kCgroup,  // the same with SignalChildrenProcesses=yes: all in the step's cgroup
  kTree,    // proctrack/linuxproc, pgid: a task and its descendants
};
Signalled signalled_by_slurm(pid_t task, const std::string& slurm_conf_directory);

// All processes of the step whose task this is, as its cgroup knows them: orphans of tasks, too. Empty without one.
std::vector<pid_t> step_processes(pid_t task);

// The step's cgroups in the hierarchy that proctrack/cgroup uses, by their inode numbers, which the kernel does not use
// again: what ever was one of them stays one.
struct StepCgroups {
  std::string directory;  // empty: not seen yet, or no proctrack/cgroup
  bool freezer = false;   // version 1's freezer hierarchy; else version 2
  std::set<uint64_t> inodes;
};
// Adds those there are now. `task` is any task of the step; 0: none is there (any more).
void add_step_cgroups(pid_t task, StepCgroups& cgroups);

// Kills what is left in the job's groups on the node, except slurmstepd. Returns how many processes there were.
size_t kill_job_processes(const std::string& node, uid_t uid, uint32_t job);

// Removes the job's groups on the node if nothing is in them any more. The last of its slurmstepds does that, but gives
// up when another one has not quite ended at that moment.
void remove_job_cgroups(const std::string& node, uid_t uid, uint32_t job);

// True when a slurmstepd of the job runs for this node. Several nodes, of several clusters, may share a machine, and
// slurmstepd names only the job: it is known by the job's IPC namespace pinned on `pin` (where there is one), else by
// its cgroup, else by its title alone. A process that only calls itself so is none.
bool job_has_slurmstepd(const std::string& node, uint32_t job, const std::string& pin);

}  // namespace icp
