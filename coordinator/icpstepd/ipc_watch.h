// SPDX-License-Identifier: GPL-2.0-or-later
// Mode `ipc: host`: notes, while a step runs, which processes are the job's and which System V objects they made, for
// the epilog. The kernel tells an object's creator by a pid, and that means nothing once the process has ended.
#pragma once

#include <optional>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/protocol/packet.h"
#include "engine/sysv/ledger.h"

namespace icp {

class IpcWatch {
 public:
  // Does nothing in the other modes, or without a ledger.
  IpcWatch(const protocol::StepFacts& facts, const Config& config);
  bool active() const { return ledger_.has_value(); }
  // One look. A process that lives between two looks only is missed, and so is what it leaves behind.
  void look(const std::vector<pid_t>& tasks);

 private:
  std::optional<JobLedger> ledger_;
};

}  // namespace icp
