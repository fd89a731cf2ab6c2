// SPDX-License-Identifier: GPL-2.0-or-later
// Working directory, root directory and umask (what CLONE_FS shares) of a process, or of a thread that has its own:
// capture and restore.
#pragma once

#include "engine/base/finding.h"
#include "engine/base/identity.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Those of one thread. Stops nothing.
void check_directories(const ProcessRef& process, pid_t tid, Findings& findings);

// Of the main thread; its umask is captured with its status.
void capture_directories(pid_t pid, pb::Process& state);
// Of a thread that has its own.
void capture_directories(pid_t pid, pid_t tid, const ProcStatus& status, pb::Directories& state);

// With the user's rights: each must be a directory that the user may enter. `tid`: for messages. `dry`: one that is
// gone is not made again, and done without. `entered`: the process is in its working directory already.
void restore_directories(RemoteProcess& remote, const pb::Process& state, const Identity& identity, bool dry,
                         bool entered);
void restore_directories(RemoteProcess& remote, uint32_t tid, const pb::Directories& state, const Identity& identity,
                         bool dry);

}  // namespace icp
