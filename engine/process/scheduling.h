// SPDX-License-Identifier: GPL-2.0-or-later
// Scheduling of a thread: policy, nice value, real-time priority, CPU affinity, I/O priority, timer slack.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <functional>
#include <map>
#include <string>

#include "engine/image/image.pb.h"

namespace icp {

// Both work from outside on a thread id as the agent sees it. Reading the timer slack takes a call in the thread:
// capture_thread() does.
void capture_scheduling(pid_t tid, pb::Thread& state);
// A task's processors, each a cpu_set_t; empty: not known.
struct CpuBinding {
  std::string saved;  // what Slurm had given it
  std::string here;   // what the new step gives it
};

// For each process of the capsule, by its pid there, the rank of the task it descends from; for processes of no task,
// whose parents have ended, that of the first one. `counts`: of which tasks.
std::map<uint32_t, int> ranks_of(const pb::Capsule& capsule, const std::function<bool(int rank)>& counts);

// The same for their processors. `here`: by rank.
std::map<uint32_t, CpuBinding> bindings_of(const pb::Capsule& capsule, const std::map<int, std::string>& here);

// Where a thread with the affinity `own` may run now. What it had from Slurm becomes what Slurm gives now; what it has
// chosen itself out of that becomes the same choice: the second processor of the old ones is the second of the new
// ones. What cannot be had here is what the step has.
cpu_set_t new_affinity(const cpu_set_t& own, const CpuBinding& binding);

// Without a binding CPU affinity comes back where the thread may use all of the saved CPUs here: elsewhere it is left.
// So is a policy that this host does not grant.
void restore_scheduling(pid_t tid, const pb::Thread& state, const CpuBinding* binding = nullptr);

}  // namespace icp
