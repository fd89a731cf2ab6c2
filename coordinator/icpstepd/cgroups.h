// SPDX-License-Identifier: GPL-2.0-or-later
// Control groups as Slurm lays them out: v1 /sys/fs/cgroup/<controllers>/slurm_<node>/uid_U/job_J/step_S, v2
// /sys/fs/cgroup/.../<node>_slurmstepd.scope/job_J/step_S. From Slurm 26.05 on v2's job_J is the job's SLUID (an `s`
// and 13 letters and digits) unless cgroup.conf says CgroupJobIdPaths=yes; and the scope lies in the slice
// CgroupSlice=.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace icp {

inline constexpr const char* kCgroupRoot = "/sys/fs/cgroup";

struct CgroupPlace {
  std::string controllers;        // "" for v2
  std::string path;               // "/slurm_node1/uid_1000/job_7/step_0"
  std::string directory() const;  // below /sys/fs/cgroup
  bool is_memory() const;         // of version 1's memory controller
};
std::vector<CgroupPlace> cgroups_of(pid_t pid);

// The job's directory in the path of a process of a step: named by a job's number, else whatever the step lies in.
// Nothing for other processes.
std::optional<std::string> job_directory(const std::string& path);

// A path of a step's or a job's process, without the job's directory and what is below; with version 1 without the
// user's, too, which is that of the user's other jobs as well. Nothing for a path of other processes.
std::optional<std::string> above_job(const std::string& path, uint32_t job);

// Moves the calling process out of the job's groups of version 1, to where slurmd keeps its own: a step's freezer and
// its signals are the tasks' and not the agent's; its memory group is joined again (join_memory_of_step) once a task is
// in it. Groups that cannot be left are kept.
void leave_job_cgroups(uint32_t job);

// Puts `pid` into the step's memory group, where there is one among the places of a task (version 1). Under version 2 a
// process is in one group for everything, and the agent stays in slurmstepd's, below the job.
void join_memory_of_step(pid_t pid, const std::vector<CgroupPlace>& places);

// Those of the places in which the process is not yet.
std::vector<CgroupPlace> places_left(pid_t pid, std::vector<CgroupPlace> places);
// Puts the process that the calling one's PID namespace knows by `number` into these groups. Throws Error naming the
// one that does not take it.
void join_cgroups(pid_t number, const std::vector<CgroupPlace>& places);

// The job's own groups: one for each hierarchy in which it has one. `own`: the places of the step's agent, which tell
// where they are called by something else than the job's number.
std::vector<CgroupPlace> groups_of_job(const std::vector<std::string>& directories,
                                       const std::vector<CgroupPlace>& own);
// Those of a process's places that are in the job's groups; nothing when the process is elsewhere in a hierarchy in
// which the job has one, or in another job's.
std::optional<std::vector<CgroupPlace>> places_in_job(const std::vector<CgroupPlace>& places,
                                                      const std::vector<CgroupPlace>& groups, uint32_t job);

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

// Those of the batch script of the task's job on this node. Empty where it runs on another node, and without cgroups.
std::vector<pid_t> batch_processes(pid_t task);

// Whether Slurm has suspended the step of these tasks.
enum class Suspension {
  kNone,
  kStopped,  // all tasks are stopped
  kFrozen,   // the freezer keeps them: nobody can stop them for a version before it lets them go
};
Suspension suspension_of(const std::vector<pid_t>& tasks);

// The step's cgroups in the hierarchy that proctrack/cgroup uses, by their inode numbers, which the kernel does not use
// again: what ever was one of them stays one.
struct StepCgroups {
  std::string directory;  // empty: not seen yet, or no proctrack/cgroup
  bool freezer = false;   // version 1's freezer hierarchy; else version 2
  std::set<uint64_t> inodes;
};
// Adds those there are now. `task` is any task of the step; 0: none is there (any more).
void add_step_cgroups(pid_t task, StepCgroups& cgroups);

// A job whose processes may have ended: what its directories are called.
struct JobName {
  uint32_t id = 0;
  std::string sluid;  // of Slurm 26.05 and later
  // With the sluid that slurmd gives prolog and epilog.
  static JobName of_environment(uint32_t id);
};

// The job's directories in whichever hierarchies exist below `root`, the place of the node's cgroups.
std::vector<std::string> job_directories(const std::string& root, const std::string& node, uid_t uid,
                                         const JobName& job);

// Kills what is left in the job's groups on the node, except slurmstepd. Returns how many processes there were.
size_t kill_job_processes(const std::string& node, uid_t uid, const JobName& job);

// Removes the job's groups on the node if nothing is in them any more. The last of its slurmstepds does that, but gives
// up when another one has not quite ended at that moment.
void remove_job_cgroups(const std::string& node, uid_t uid, const JobName& job);

// True when a slurmstepd of the job runs for this node. Several nodes, of several clusters, may share a machine, and
// slurmstepd names only the job: it is known by the job's IPC namespace pinned on `pin` (where there is one), else by
// its cgroup, else by its title alone. A process that only calls itself so is none.
bool job_has_slurmstepd(const std::string& node, uint32_t job, const std::string& pin);

}  // namespace icp
