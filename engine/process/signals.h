// SPDX-License-Identifier: GPL-2.0-or-later
// Signal handlers and pending signals: capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Handlers and signals pending for the process.
void capture_signals(StoppedProcess& process, pb::Process& state);
void restore_signal_actions(RemoteProcess& remote, const pb::Process& state);
// Drops what the restore itself caused (SIGCHLD of helpers and zombies), then queues the saved signals again; the
// process's leader and then each thread for its own. All signals are blocked in the thread.
void restore_process_signals(RemoteProcess& remote, const pb::Process& state);
void restore_thread_signals(RemoteProcess& remote, const pb::Process& state, const pb::Thread& thread);

}  // namespace icp
