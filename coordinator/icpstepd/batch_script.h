// SPDX-License-Identifier: GPL-2.0-or-later
// The batch script of a job, as its steps on the same node see it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace icp {

// Writes a line to the standard error of the script's shell, when nothing says that the user sees what the step writes:
// mpirun and scripts that redirect srun's output throw it away. `task`: a task of the step. Never throws.
void tell_batch_script(pid_t task, const std::string& line);

// True when a client srun is among the descendants of these processes.
bool runs_srun(const std::vector<pid_t>& roots);

}  // namespace icp
