// SPDX-License-Identifier: GPL-2.0-or-later
// AMX's tile registers: the one part of the extended state that a process has to ask the kernel for, and that a thread
// has no room for before it uses them. Capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/trace/call_batch.h"
#include "engine/trace/remote_process.h"

namespace icp {

// Whether the process has asked for them; `calls` are to be made in one of its threads.
void capture_tile_permission(CallBatch& calls, pb::Process& state);
// Asks for them again. Throws kSystem where this processor or kernel has none.
void restore_tile_permission(RemoteProcess& remote, const pb::Process& state);

// Makes room for them in a thread whose saved state has them: before that the kernel takes no such state for it.
void make_room_for_tiles(RemoteProcess& remote, const pb::Thread& state);

}  // namespace icp
