// SPDX-License-Identifier: GPL-2.0-or-later
// Giving root's rights up for good.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "engine/base/identity.h"

namespace icp {

// The one capability that a worker, and processes under construction, have beside what their user has: numbers of
// processes and System V objects (clone3, *_next_id), the link to a running program (PR_SET_MM_MAP), and
// /proc/PID/map_files of processes that their user may trace anyway. See capabilities(7).
inline constexpr int kCheckpointRestore = 40;  // CAP_CHECKPOINT_RESTORE, Linux 5.9

// The calling process, which has one thread, takes the ids and groups of `identity`: real, effective, saved and
// file-system ones. Of its capabilities `kept` stays (a mask), also over an exec where `ambient`; nothing of them when
// the user is root, who has them all. No program it executes gets more (no_new_privs), unless root. The process may be
// looked into by its like (PR_SET_DUMPABLE). Returns null, or what failed, with errno; async-signal-safe.
const char* take_identity(const Identity& identity, uint64_t kept, bool ambient, bool dumpable = true) noexcept;

// The last part alone: capabilities and no_new_privs, for a process that has the ids.
const char* keep_capabilities(uint64_t kept, bool ambient, bool dumpable = true) noexcept;

// Checks the result: throws kPermission unless the calling process has the ids of `identity` and no capability but
// `kept`.
void check_identity(const Identity& identity, uint64_t kept);

}  // namespace icp
