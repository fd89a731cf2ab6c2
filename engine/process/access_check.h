// SPDX-License-Identifier: GPL-2.0-or-later
// Whether the kernel lets the agent, with its user's rights, look into processes.
#pragma once

#include <vector>

#include "engine/base/finding.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Findings for processes that may not be traced (ptrace(2), "Ptrace access mode checking"): another user's, set-user-id
// ones, those that have had rights and given them up, and those whose program may not be read. They are taken out of
// `processes`, as no other check could be made of them. Asks the kernel anew each time: a program may be executed at
// any moment, and the stop asks again for each thread.
void check_access(std::vector<ProcessRef>& processes, Findings& findings);

}  // namespace icp
