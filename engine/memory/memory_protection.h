// SPDX-License-Identifier: GPL-2.0-or-later
// Protection keys (pkeys(7)) and seals (mseal(2)): capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

// Which keys the program has been given: the kernel says it of a mapping that is not there.
void capture_protection_keys(const StoppedProcess& process, CallBatch& calls, pb::Process& state);

// Before anything is mapped: memory that may be executed alone takes a key, too. The thread may touch memory of all of
// them until it gets its registers.
void restore_protection_keys(RemoteProcess& remote, const pb::AddressSpace& memory);
// When nothing is written to the memory by calls of the process any more, and its mappings are what they are to be.
void protect_mappings(RemoteProcess& remote, const pb::AddressSpace& memory);

}  // namespace icp
