// SPDX-License-Identifier: GPL-2.0-or-later
// What a thread has of its own though its process is saved as a whole.
#pragma once

#include <optional>

#include "engine/base/finding.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Each thread of the process against its main thread: seccomp, ids, groups, capabilities, descriptor table,
// directories, namespaces. Stops nothing but a process whose seccomp filters are not known yet, for a moment; threads
// that end meanwhile are left out.
void check_thread_states(const ProcessRef& process, const ProcStatus& leader, Findings& findings);

// The same of a stopped process, and what only ptrace tells; fills process.own. Until this has found nothing, no system
// call may be made in any of its threads: a filter installed since the check would end the thread, or the process.
// Throws kRefused, or kBusy for what another look may find otherwise.
void note_thread_states(StoppedProcess& process);

}  // namespace icp
