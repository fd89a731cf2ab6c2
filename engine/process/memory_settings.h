// SPDX-License-Identifier: GPL-2.0-or-later
// What system calls have set about a process's memory and no file shows: membarrier(2) registrations, mlockall(2) of
// what is yet to be mapped, and the NUMA policy of a thread. Capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

void capture_memory_settings(const StoppedProcess& process, CallBatch& calls, pb::Process& state);
void capture_numa_policy(CallBatch& calls, pb::Thread& state);

// Before the process has other threads: the kernel would let each of them pass by.
void restore_membarrier(RemoteProcess& remote, const pb::Process& state);
// When nothing is mapped any more.
void restore_future_locks(RemoteProcess& remote, const pb::Process& state);
void restore_numa_policy(RemoteProcess& remote, const pb::Thread& state);

}  // namespace icp
