// SPDX-License-Identifier: GPL-2.0-or-later
// Signal handlers and pending signals: capture and restore.
#pragma once

#include <functional>

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

// Handlers and signals pending for the process.
void capture_signals(const StoppedProcess& process, CallBatch& calls, pb::Process& state);
// True for a pending SIGSTOP, which nothing can hold back: the saved process is then a stopped one, without the signal.
bool note_stop(const siginfo_t& info, pb::Process& state);
// A signal that means nothing to the process: not caught, not pending (a mask of those that are), and ignored, by
// default or by its wish. 0 when there is none.
int find_quiet_signal(const ProcStatus& status, uint64_t pending);
void restore_signal_actions(RemoteProcess& remote, const pb::Process& state);
// Drops what the restore itself caused (SIGCHLD of helpers and zombies), then queues the saved signals again; the
// process's leader and then each thread for its own. All signals are blocked in the thread.
void restore_process_signals(RemoteProcess& remote, const pb::Process& state);
void restore_thread_signals(RemoteProcess& remote, const pb::Process& state, const pb::Thread& thread);
// The signal by which a process of the image that was stopped stops again: that of the first stop, where it has the
// same effect, else SIGSTOP. Stops of the terminal's kind are dropped by a process group that is orphaned.
int stop_signal_of(const pb::Process& state, const pb::Capsule& capsule);
// `stop` stops a child of the process by a signal. Afterwards it is as if the process had waited for that: no SIGCHLD,
// and nothing for wait(2). `child`: its number in the capsule.
void take_stop_of_child(RemoteProcess& parent, uint32_t child, const std::function<void()>& stop);

}  // namespace icp
