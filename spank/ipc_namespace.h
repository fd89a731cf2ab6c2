// SPDX-License-Identifier: GPL-2.0-or-later
// The job's IPC namespace on this node: the first step makes and pins it, the others join.
#pragma once

#include <string>

#include "spank/settings.h"

namespace icp::spank {

// Puts the calling thread, and the tasks it will fork, into the job's IPC namespace. Called in slurmstepd's
// init_post_opt: earlier the step is not known, later (user_init) the rights are gone. Returns what went wrong, or
// nothing. `job_dir` is the job's directory (engine/sysv/ledger.h); it stays until the job's epilog.
std::string enter_job_namespace(const std::string& job_dir);

// Makes the job's directory and those above it, root's alone. Returns what went wrong, or nothing.
std::string make_job_directory(const std::string& job_dir);

}  // namespace icp::spank
