// SPDX-License-Identifier: GPL-2.0-or-later
// What stops a checkpoint, found while the processes run.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace icp {

// One resource that cannot be checkpointed. `pid` is the caller's view of the pid.
struct Finding {
  pid_t pid = 0;
  std::string command;     // comm of the process
  std::string where;       // "descriptor 7", "address 7f12a000-7f12b000", "thread 4712", "System V semaphore set 3"
  std::string what;        // "TCP socket connected to 10.0.0.7:80"
  std::string hint;        // "close the connection before the checkpoint"
  bool transient = false;  // true: may be gone in a moment (a vfork in progress); worth another try
};

using Findings = std::vector<Finding>;

// "process 4711 (app), descriptor 7: TCP socket connected to ...; close the connection ..."
std::string to_sentence(const Finding& finding);

}  // namespace icp
