// SPDX-License-Identifier: GPL-2.0-or-later
// What the steps of a job must know of each other on a node, in files beside the job's ledger:
//
//   <run_dir>/<node>/job_<id>.run     how often the job has been requeued, written by the prolog
//   <run_dir>/<node>/job_<id>.steps   the job has had a step of srun
//
// Removed by the epilog (icpstepd epilog).
#pragma once

#include <cstdint>
#include <string>

namespace icp::spank {

// In the prolog. Slurm tells the restart count neither to the extern nor to the batch step when they start
// (S_SLURM_RESTART_COUNT is always 0 in 22.05), yet all steps must agree on it, since it is part of the ledger's name.
// Throws Error when it cannot be written.
void record_restart_count(const std::string& run_dir, const std::string& node, uint32_t job, uint32_t count);
// In slurmstepd. The prolog is not always run: slurmd takes it for done when a requeued job's launch and its prolog
// request come at the same moment (seen with 22.05). Slurm is asked then; 0 when it
// does not answer. Throws Error when that cannot be written.
uint32_t restart_count(const std::string& run_dir, const std::string& node, uint32_t job);

void note_numbered_step(const std::string& run_dir, const std::string& node, uint32_t job);

}  // namespace icp::spank
