// SPDX-License-Identifier: GPL-2.0-or-later
// The administrator's script after each version (icp.yaml: site_script), as Slurm's scch once was.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>

#include "engine/base/identity.h"

namespace icp {

// Starts <script> <job> <step> <error> <directory> as the job's user, in `directory` if that can be entered, with
// /dev/null as its streams, and does not wait for it. `join` puts the process that becomes it into the step's cgroups;
// what it throws ends that. Errors are logged: a script is no reason to fail.
void start_site_script(const std::string& script, const Identity& user, uint32_t job, const std::string& step,
                       int error, const std::string& directory, const std::function<void(pid_t)>& join);

}  // namespace icp
