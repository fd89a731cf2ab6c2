// SPDX-License-Identifier: GPL-2.0-or-later
// Mode `ipc: host`: notes, while a step runs, which processes are the job's and which System V objects they made, for
// the epilog. The kernel tells an object's creator by a pid, and that means nothing once the process has ended.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/protocol/packet.h"
#include "engine/sysv/ledger.h"
#include "engine/sysv/shm_events.h"

namespace icp {

class IpcWatch {
 public:
  // Does nothing in the other modes, or without a ledger. `complain` has the sentences for the log, which a user can
  // bring about.
  using Complain = std::function<void(const std::string&)>;
  IpcWatch(const protocol::StepFacts& facts, const Config& config, Complain complain);
  bool active() const { return ledger_.has_value(); }
  // One look, at the tasks that are still there. With the kernel module, segments of processes that came and went since
  // the last one are the job's by the cgroup they were made in; without it, or without proctrack/cgroup, these are
  // missed.
  void look(const std::vector<pid_t>& tasks);

 private:
  void look_at_processes(const std::vector<pid_t>& tasks);
  void look_at_cgroups(const std::vector<pid_t>& tasks);
  void look_at_events(const std::vector<pid_t>& tasks);

  const Complain complain_;
  bool was_full_ = false;
  std::optional<JobLedger> ledger_;
  std::optional<ShmEvents> events_;
  StepCgroups cgroups_;
};

}  // namespace icp
