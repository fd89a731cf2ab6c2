// SPDX-License-Identifier: GPL-2.0-or-later
// What belongs to one thread: registers, signal mask and pending signals, alternate stack, robust list,
// set_tid_address, rseq. Capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

// Fills `state` for thread `index` of a stopped process, all but its number; `calls` are to be made in that thread.
void capture_thread(const StoppedProcess& process, size_t index, CallBatch& calls, pb::Process& process_state,
                    pb::Thread& state);

// Everything that takes calls in the thread, while it still has root's rights.
void restore_thread(RemoteProcess& remote, const pb::Thread& state);
// Registers and signal mask: the last thing before the thread goes on; it must be in a stop made by restop().
// `places`: the same for all threads of a process.
void restore_registers(Tracee& thread, TimeoutPlaces& places, const pb::Thread& state);

}  // namespace icp
