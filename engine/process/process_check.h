// SPDX-License-Identifier: GPL-2.0-or-later
// What about whole processes and their tree cannot be checkpointed.
#pragma once

#include <vector>

#include "engine/base/finding.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Credentials, attributes, namespaces, 32-bit programs, memory shared between processes, sessions that no fork can
// repeat. Stops nothing; a process that ends meanwhile is left out.
void check_processes(const std::vector<ProcessRef>& processes, Findings& findings);

// Numbers, parents, sessions, groups and states of processes, from /proc, as plan_tree() wants them. A parent that is
// not among them is the capsule's init.
void describe_tree(const std::vector<ProcessRef>& processes, pb::Capsule& capsule);
// The same of stopped processes, from what was read of them.
void describe_tree(const std::vector<StoppedProcess>& processes, pb::Capsule& capsule);

}  // namespace icp
