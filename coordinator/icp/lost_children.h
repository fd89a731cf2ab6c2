// SPDX-License-Identifier: GPL-2.0-or-later
// Daemons of a tree: processes that left it when their parents ended.
#pragma once

#include <sys/types.h>

#include <vector>

namespace icp {

// Processes that the tree of `root` has probably started, though nothing proves it: they are init's by now (or those of
// a process above the root that adopts orphans), began later than the root, and have its user, its control groups and
// its environment.
std::vector<pid_t> lost_children(pid_t root);

}  // namespace icp
