// SPDX-License-Identifier: GPL-2.0-or-later
// Interval timers (setitimer) and POSIX timers (timer_create): capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

void capture_timers(const StoppedProcess& process, CallBatch& calls, pb::Process& state);
// /proc names the threads that timers notify by the agent's numbers: puts the capsule's, once state.threads has them.
void name_timer_threads(const StoppedProcess& process, pb::Process& state);
// Arms the timers with what was left of them; the last step before the process goes on.
void restore_timers(RemoteProcess& remote, const pb::Process& state);

}  // namespace icp
