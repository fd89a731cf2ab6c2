// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel says of a process tree, before a version and after a restart.
//
// From outside: what /proc/PID has of processes, threads, descriptors, mappings and limits, and what sched_getattr(2),
// getsockopt(2) and their like answer. From inside: what only the process itself is told, by prctl(2) and others. What
// must differ after a restart is on the lists in kernel_view.cc, each with its reason; anything else that differs is a
// failure.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

namespace icp::test {

// By what it is: "process 12: status: Uid" and so on.
using KernelView = std::map<std::string, std::string>;

// Of the processes with these numbers in their own namespace and all below them; they wait.
KernelView view_of_tree(pid_t root);
// Of the calling thread, by system calls.
KernelView view_of_self();
// Lines "what: before -> after", at most `most` of them.
std::vector<std::string> differences(const KernelView& before, const KernelView& after, size_t most = 20);

}  // namespace icp::test
