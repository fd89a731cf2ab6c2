// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/access_check.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp {
namespace {

// /proc/PID/maps asks for PTRACE_MODE_READ, which differs from what tracing asks for by security modules alone.
bool may_look(pid_t pid) {
  const UniqueFd maps(::open(fmt::format("/proc/{}/maps", pid).c_str(), O_RDONLY | O_CLOEXEC));
  char byte;
  return (maps && ::read(maps.get(), &byte, 1) >= 0) || (errno != EACCES && errno != EPERM);
}

// Yama: 1 lets ancestors trace, 2 and 3 nobody without rights.
int ptrace_scope() {
  int scope = 0;
  std::ifstream("/proc/sys/kernel/yama/ptrace_scope") >> scope;
  return scope;
}

Finding refusal(const ProcessRef& process) {
  Finding finding;
  finding.pid = process.pid;
  finding.command = process.comm;
  const ProcStatus status = ProcStatus::read(process.pid);
  const bool other = std::any_of(status.uid.begin(), status.uid.end(), [](uid_t uid) { return uid != ::geteuid(); });
  if (other) {
    finding.what = fmt::format("user {} may not look into it: it runs as user {} (effective {})", ::geteuid(),
                               status.uid[0], status.uid[1]);
    finding.hint = "a process that is not its user's alone, as set-user-id programs are, cannot be checkpointed";
  } else {
    finding.what = fmt::format("user {} may not look into it (it is not dumpable)", ::geteuid());
    finding.hint =
        "programs that have had other rights, that may not be read (mode 0711), or that asked for it "
        "(PR_SET_DUMPABLE) cannot be checkpointed";
  }
  return finding;
}

}  // namespace

void check_access(std::vector<ProcessRef>& processes, Findings& findings) {
  std::erase_if(processes, [&](const ProcessRef& process) {
    if (process.zombie || may_look(process.pid)) return false;
    try {
      findings.push_back(refusal(process));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
    return true;
  });
  if (::geteuid() == 0 || ptrace_scope() < 2 || processes.empty()) return;
  Finding finding;
  finding.pid = processes.front().pid;
  finding.command = processes.front().comm;
  finding.what = "no process may be traced on this machine without rights (kernel.yama.ptrace_scope)";
  finding.hint = "set the sysctl kernel.yama.ptrace_scope to 0 or 1";
  findings.push_back(finding);
}

}  // namespace icp
