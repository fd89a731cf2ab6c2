// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/ipc_watch.h"

#include <spdlog/spdlog.h>

#include "coordinator/icpstepd/cgroups.h"
#include "engine/base/error.h"
#include "engine/process/stopped_tree.h"

namespace icp {

IpcWatch::IpcWatch(const protocol::StepFacts& facts, const Config& config) {
  if (config.ipc != IpcPolicy::kHost) return;
  try {
    ledger_ = JobLedger::open(config.run_dir, facts.node, facts.job, facts.restarts);
    if (ledger_ && ledger_->facts().mode != IpcMode::kHost) ledger_.reset();
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
  }
}

void IpcWatch::look(const std::vector<pid_t>& tasks) {
  if (!ledger_ || tasks.empty()) return;
  try {
    std::vector<pid_t> roots = tasks;
    for (const pid_t task : tasks) {
      try {
        for (const pid_t pid : step_processes(task)) roots.push_back(pid);
        break;  // all tasks of a step have one cgroup
      } catch (const Error&) {
        continue;  // this task has ended
      }
    }
    ledger_->record_pids(find_processes(roots));
    ledger_->record_objects();
  } catch (const Error& error) {
    spdlog::warn("{}", error.what());
  }
}

}  // namespace icp
