// SPDX-License-Identifier: GPL-2.0-or-later
// User, groups and capabilities of a process: capture and restore.
#pragma once

#include "engine/base/finding.h"
#include "engine/base/identity.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Set-user-id programs and processes with capabilities of their own cannot be restored with the job's rights alone,
// unless those are root's.
void check_credentials(const ProcessRef& process, Findings& findings);
void capture_credentials(const ProcStatus& status, pb::Process& state);
// Of a thread that has others than the main one.
void capture_thread_credentials(const ProcStatus& status, pb::Thread& state);
bool same_credentials(const ProcStatus& a, const ProcStatus& b);
// Whether processes come back with the ids, groups and capabilities that they have: root's alone, who may give anything
// up.
bool keeps_rights();

// Takes the identity that Slurm (or the caller) vouches for: ids and capabilities in the image are not looked at, a
// saved group id is honoured only if it is one of the identity's. Per thread, since the kernel keeps credentials so.
// The thread has no way back to root afterwards.
void restore_credentials(RemoteProcess& remote, const pb::Process& state, const Identity& identity);

// The last calls in a thread, of root alone: the ids, groups and capabilities that it had, with which it may do less.
void take_saved_rights(RemoteProcess& remote, const pb::Process& state, const pb::Thread& thread);
// For everybody else.
void restore_securebits(RemoteProcess& remote, const pb::Thread& thread);

}  // namespace icp
