// SPDX-License-Identifier: GPL-2.0-or-later
// Interval timers (setitimer) and POSIX timers (timer_create): capture and restore.
#pragma once

#include <signal.h>

#include <functional>

#include "engine/base/finding.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"
#include "engine/trace/remote_process.h"

namespace icp {

void capture_timers(const StoppedProcess& process, CallBatch& calls, pb::Process& state);
// /proc names the threads that timers notify by the agent's numbers: puts the capsule's, once state.threads has them.
void name_timer_threads(const StoppedProcess& process, pb::Process& state);
// Refuses what a restart here could not make again.
void check_timers(const ProcessRef& process, Findings& findings);
// Arms the timers with what was left of them; the last step before the process goes on. `in_thread` finds a thread of
// the process, by the capsule's number.
void restore_timers(RemoteProcess& remote, const pb::Process& state,
                    const std::function<RemoteProcess(uint32_t tid)>& in_thread);
// Whether a pending signal comes from a POSIX timer that restore_timers() lets send it again: the kernel keeps one
// signal a timer, counts what comes meanwhile in it, and goes on with the timer when it is taken.
bool sent_by_timer(const pb::Process& state, const siginfo_t& info);

}  // namespace icp
