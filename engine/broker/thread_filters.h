// SPDX-License-Identifier: GPL-2.0-or-later
// The seccomp filters of a process's threads, which the kernel shows to root alone.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <optional>

#include "engine/process/interrupted_calls.h"
#include "engine/trace/seccomp_book.h"

namespace icp {

struct FilteredThread {
  SeccompChain chain;                                 // equal filters of a process are one
  std::optional<InterruptedCalls::Call> interrupted;  // that the thread goes on with by restart_syscall(2)
};
using ThreadFilters = std::map<pid_t, FilteredThread>;  // by thread, the caller's view

namespace privileged {

// Stops the process for a moment, calls `check` while it cannot end, and reads them. Throws kRefused where the kernel
// or a filter of our own does not allow it. PTRACE_SECCOMP_GET_FILTER: CAP_SYS_ADMIN.
ThreadFilters thread_filters(pid_t pid, const std::function<void()>& check);

}  // namespace privileged
}  // namespace icp
