// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/ipc_watch.h"

#include <fmt/format.h>

#include <utility>

#include "engine/base/error.h"
#include "engine/process/stopped_tree.h"

namespace icp {

IpcWatch::IpcWatch(const protocol::StepFacts& facts, const Config& config, Complain complain)
    : complain_(std::move(complain)) {
  if (config.ipc != IpcPolicy::kHost) return;
  try {
    ledger_ = JobLedger::open(config.run_dir, facts.node, facts.job, facts.restarts);
    if (ledger_ && ledger_->facts().mode != IpcMode::kHost) ledger_.reset();
    if (ledger_) events_ = ShmEvents::watch();
  } catch (const Error& error) {
    complain_(error.what());
  }
}

void IpcWatch::look_at_processes(const std::vector<pid_t>& tasks) {
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
}

void IpcWatch::look_at_cgroups(const std::vector<pid_t>& tasks) {
  for (const pid_t task : tasks) {
    try {
      return add_step_cgroups(task, cgroups_);
    } catch (const Error&) {
      continue;  // this task has ended
    }
  }
  add_step_cgroups(0, cgroups_);
}

void IpcWatch::look_at_events(const std::vector<pid_t>& tasks) {
  if (!events_) return;
  if (cgroups_.directory.empty()) look_at_cgroups(tasks);
  if (cgroups_.directory.empty()) return;  // until they are known, events wait
  uint64_t lost = 0;
  std::vector<ShmCreation> creations = events_->read(lost);
  if (lost > 0) {
    complain_(fmt::format(
        "{} events of System V shared memory were lost: a segment whose maker is gone may stay behind", lost));
  }
  // After the events: a cgroup that is made later has none among them.
  look_at_cgroups(tasks);
  std::erase_if(creations, [this](const ShmCreation& made) {
    return !cgroups_.inodes.contains(cgroups_.freezer ? made.cgroup_freezer : made.cgroup);
  });
  ledger_->record_creations(creations);
}

void IpcWatch::look(const std::vector<pid_t>& tasks) {
  if (!ledger_) return;
  try {
    if (!tasks.empty()) look_at_processes(tasks);
    look_at_events(tasks);
    ledger_->record_objects();
    if (ledger_->full() && !std::exchange(was_full_, true))
      complain_("the job has had so many processes or System V objects that what it leaves behind is not all known");
  } catch (const Error& error) {
    complain_(error.what());
  }
}

}  // namespace icp
