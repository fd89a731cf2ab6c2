// SPDX-License-Identifier: GPL-2.0-or-later
// Interval timers (setitimer) and POSIX timers (timer_create): capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

void capture_timers(StoppedProcess& process, pb::Process& state);
// Arms the timers with what was left of them; the last step before the process goes on.
void restore_timers(RemoteProcess& remote, const pb::Process& state);

}  // namespace icp
