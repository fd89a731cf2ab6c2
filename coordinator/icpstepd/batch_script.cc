// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/batch_script.h"

#include <sys/stat.h>

#include <algorithm>
#include <optional>

#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/notices.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/process/stopped_tree.h"

namespace icp {
namespace {

constexpr const char* kClient = "srun";

std::optional<StreamId> stderr_of(pid_t pid) {
  struct stat facts {};
  if (::stat(fmt::format("/proc/{}/fd/2", pid).c_str(), &facts) != 0) return std::nullopt;
  return StreamId{facts.st_dev, facts.st_ino, facts.st_mode, facts.st_rdev};
}

// The process of the script whose parent is none of it: its shell.
pid_t shell_of(const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) {
    const pid_t parent = ProcStat::read(pid).ppid;
    if (std::find(pids.begin(), pids.end(), parent) == pids.end()) return pid;
  }
  return 0;
}

}  // namespace

void tell_batch_script(pid_t task, const std::string& line) {
  try {
    const std::vector<pid_t> pids = batch_processes(task);
    const pid_t shell = shell_of(pids);
    const std::optional<StreamId> output = shell == 0 ? std::nullopt : stderr_of(shell);
    if (!output) return;
    for (const pid_t pid : pids) {
      if (ProcStat::read(pid).comm != kClient) continue;
      const auto own = stderr_of(pid);
      if (own && own->dev == output->dev && own->ino == output->ino) return;  // the step's line has come there
    }
    write_to_task(shell, *output, line);
  } catch (const Error&) {
    // The script ends.
  }
}

bool runs_srun(const std::vector<pid_t>& roots) {
  const std::vector<ProcessRef> all = find_processes(roots);
  return std::any_of(all.begin(), all.end(), [](const ProcessRef& one) { return one.comm == kClient; });
}

}  // namespace icp
