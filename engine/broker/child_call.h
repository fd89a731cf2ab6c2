// SPDX-License-Identifier: GPL-2.0-or-later
// What is done about a process that is known by its number, when that must not become another's meanwhile.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>

#include "engine/broker/message.h"

namespace icp {

// Does `work` in a child of this process; what it throws (Error) is thrown here.
void call_in_child(const std::function<void()>& work);

// The answer of a child, which may be kept waiting by processes that it looks at (whoever holds a process's mmap_lock
// keeps readers of its maps waiting, and a user can hold it for as long as he likes). Nothing when it has not come in
// time. The child has no descriptor of this process's but the standard streams.
std::optional<Message> ask_in_child(const std::function<Message()>& work, int timeout_ms);

// Does `work` in a child that is in the PID namespace of a process, held by its directory in /proc, with the number
// that the process has there: what the kernel is told of that number (cgroup.procs) concerns no process outside of the
// namespace, whoever has the number by then. kPermission when the namespace is this process's own.
void call_in_pid_namespace(int process, const std::function<void(pid_t)>& work);

}  // namespace icp
