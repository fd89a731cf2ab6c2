// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/kept_number.h"

#include <sys/ptrace.h>

#include "engine/base/error.h"
#include "engine/broker/child_call.h"

namespace icp {

// The tracee is let go by the end of its tracer.
void with_kept_number(pid_t pid, const std::function<void()>& work) {
  call_in_child([&] {
    if (::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) != 0) throw_errno("cannot hold process {}", pid);
    work();
  });
}

}  // namespace icp
