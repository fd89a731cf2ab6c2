// SPDX-License-Identifier: GPL-2.0-or-later
// The end of a job on this node: what is left of it goes. Separate processes; nothing is shared with the step's agents.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "coordinator/config.h"

namespace icp {

// The epilog: kills what is left in the job's cgroups, removes its System V objects, and logs what was removed.
// `restarts` is Slurm's count at the time of the call: an epilog may come late, when the job already runs again.
void end_job(const Config& config, const std::string& node, uint32_t job, uid_t uid, uint32_t restarts);

// At slurmd's start, and with each epilog: ledgers of jobs that ended while nobody listened. Only of jobs of which
// nothing runs on this machine any more.
void clean_stale(const Config& config);

}  // namespace icp
