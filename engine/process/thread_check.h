// SPDX-License-Identifier: GPL-2.0-or-later
// What a thread has of its own though its process is saved as a whole.
#pragma once

#include <optional>

#include "engine/base/finding.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Each thread of the process against its main thread: seccomp, ids, groups, capabilities, descriptor table, working
// directory, namespaces. Stops nothing; threads that end meanwhile are left out.
void check_thread_states(const ProcessRef& process, const ProcStatus& leader, Findings& findings);

// The same of a stopped process, and what only ptrace tells. Until this has found nothing, no system call may be made
// in any of its threads: a filter installed since the check would end the thread, or the process. Throws kRefused.
void check_stopped_threads(const StoppedProcess& process);

}  // namespace icp
