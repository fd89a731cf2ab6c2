// SPDX-License-Identifier: GPL-2.0-or-later
// NUMA policies of single mappings, set by mbind(2): capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

// Looks in /proc/PID/numa_maps, which walks the page tables: while the process runs. It does not tell a mapping's own
// policy from the process's, so those that may have one are asked about in the stop. One thread.
void note_numa_mappings(const ProcessRef& process);
// Calls in the main thread; the answers stay until the next stop of the process.
void capture_numa_mappings(const StoppedProcess& process, CallBatch& calls);
// That of the mapping which begins there; null: none of its own.
const pb::NumaPolicy* numa_policy_of(pid_t pid, uint64_t start);

// A machine without such nodes has no use for it.
void restore_numa_policy(RemoteProcess& remote, const pb::Mapping& mapping);

}  // namespace icp
