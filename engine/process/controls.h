// SPDX-License-Identifier: GPL-2.0-or-later
// What prctl(2) sets and nothing else shows: securebits, time stamp counter, machine checks, speculation of a thread;
// memory-deny-write-execute and merging of a process. Capture and restore, and the core filter.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/trace/call_batch.h"

namespace icp {

void capture_thread_controls(CallBatch& calls, pb::Thread& state);
void capture_process_controls(pid_t pid, CallBatch& calls, pb::Process& state);

// While the process may do everything; before its identity.
void restore_core_filter(pid_t pid, const pb::Process& state);
// Among the last calls: PR_SET_MDWE forbids mappings that a restore makes, and PR_SET_TSC the time stamp counter.
void restore_thread_controls(RemoteProcess& remote, const pb::Thread& state);
void restore_process_controls(RemoteProcess& remote, const pb::Process& state);

}  // namespace icp
