// SPDX-License-Identifier: GPL-2.0-or-later
// Signals to processes that are not our children: their numbers may be others' by the time the signal is sent.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "engine/base/unique_fd.h"

namespace icp {

// To the process with this number that was started at `start_time` (ticks since boot, see ProcStat), and to no later
// one; 0: whichever has the number. False if it has ended or may not be sent signals to.
bool signal_process(pid_t pid, uint64_t start_time, int signal) noexcept;

// Of a process by its pidfd.
bool has_ended(const UniqueFd& process) noexcept;

}  // namespace icp
