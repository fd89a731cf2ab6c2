// SPDX-License-Identifier: GPL-2.0-or-later
// Scheduling of a thread: policy, nice value, real-time priority, CPU affinity, I/O priority, timer slack.
#pragma once

#include <sys/types.h>

#include "engine/image/image.pb.h"

namespace icp {

// Both work from outside on a thread id as the agent sees it. Reading the timer slack takes a call in the thread:
// capture_thread() does.
void capture_scheduling(pid_t tid, pb::Thread& state);
// CPU affinity comes back only where the thread may use all of the saved CPUs here: elsewhere the new step's own
// binding stays. A policy that this host does not grant is left at what the step has.
void restore_scheduling(pid_t tid, const pb::Thread& state);

}  // namespace icp
