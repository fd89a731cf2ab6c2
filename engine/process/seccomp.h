// SPDX-License-Identifier: GPL-2.0-or-later
// Seccomp filters, and strict mode, of threads. They hold for system calls that we make in the threads, too. Where root
// makes them, they are put aside for that time; else nothing is begun that a filter would not let through.
#pragma once

#include "engine/base/finding.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/seccomp_book.h"

namespace icp {

// One thread of a process whose status has Seccomp 1 or 2. Where its filters are not known yet the process is stopped
// for a moment, by root, who alone may read them; in the stop (`stopped`) what has been installed since is a transient
// finding.
void check_seccomp(const ProcessRef& process, pid_t tid, int mode, bool stopped, Findings& findings);
// Before the first call in a stopped thread.
void suspend_filters(Tracee& thread);
// The stop in which filters are read may be the one that sees which call of a thread it interrupts.
void tell_interrupted_call(pid_t tid, InterruptedCalls& calls);

// A stop makes the kernel go on with a timed wait by restart_syscall(2), which a list of allowed calls may not have.
// Such a thread makes its call again instead, with the time that it has left.
void avoid_restart_call(const SeccompChain& chain, TimeoutPlaces& places, ThreadStart& start);

// Fills thread.filters and capsule.filters; the threads of the processes are there already.
void capture_filters(const std::vector<StoppedProcess>& processes, pb::Capsule& capsule);

bool has_filters(const pb::Thread& thread);
// How many filters, from the first one, all threads of a process have. They are one list for the kernel, which
// seccomp(2) with SECCOMP_FILTER_FLAG_TSYNC wants.
size_t filters_of_all(const pb::Process& state);
// These, for all threads by a call in the main one, while no thread has filters.
void restore_shared_filters(RemoteProcess& leader, const pb::Capsule& capsule, const pb::Process& state, size_t count);
// The filters of one thread but the first `shared`, by calls in it. Unless they are suspended those are its last, but
// for one that unmaps what they are made from (`leader`). Throws kImage for filters that the image does not have or the
// kernel does not take.
void restore_filters(RemoteProcess& remote, const pb::Capsule& capsule, const pb::Thread& thread, bool leader,
                     size_t shared);

}  // namespace icp
