// SPDX-License-Identifier: GPL-2.0-or-later
// A step on its node, from slurmstepd's start to its end, and the job's end.
#pragma once

#include "spank/settings.h"
#include "spank/slurm_api.h"

namespace icp::spank {

// In slurmstepd, as root, the options are known, no task is forked: IPC namespace, and icpstepd if the step asks.
void begin_step(spank_t handle, const Settings& settings);
// In slurmstepd, as root: a task was forked, and waits before its exec.
void name_task(spank_t handle);
// In the forked task, as the user, just before exec. Not 0: the task must not run. Does not return on a restart.
int start_task(spank_t handle);
// In slurmstepd, as root: a task has ended.
void end_task(spank_t handle);
// In slurmstepd, as root: all tasks have ended.
void end_step();

// In a child of slurmd, as root, before the job's first step on this node: the prolog.
void begin_job(spank_t handle, const Settings& settings);
// In a child of slurmd, as root: the job has ended on this node.
void end_job(spank_t handle, const Settings& settings);
// In slurmd, as root, at its start: what jobs left that ended while it was down. Does not wait.
void clean_stale(const Settings& settings);

}  // namespace icp::spank
