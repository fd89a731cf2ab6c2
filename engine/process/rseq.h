// SPDX-License-Identifier: GPL-2.0-or-later
// Restartable sequences (rseq(2)): capture and restore.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Fills start.rseq*: where the thread's struct rseq lies. Kernels without PTRACE_GET_RSEQ_CONFIGURATION (before 5.13)
// give none.
void find_rseq(Tracee& thread, pid_t pid, ThreadStart& start);

// A thread stopped inside a critical section goes on at its abort address, as after any preemption: the kernel forgets
// the section as soon as it sees the thread elsewhere, which a system call of ours makes it do.
void leave_rseq_section(pid_t pid, ThreadStart& start);

void restore_rseq(RemoteProcess& remote, const pb::Thread& thread);

}  // namespace icp
