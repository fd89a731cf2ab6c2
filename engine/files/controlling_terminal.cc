// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/controlling_terminal.h"

#include <sys/stat.h>

#include <map>
#include <set>

#include "engine/files/pty.h"

namespace icp {
namespace {

using Terminals = std::map<dev_t, pb::Terminal>;

Terminals terminals_of(FileScan& scan) {
  Terminals terminals;
  for (const auto& description : scan.descriptions()) {
    pb::Terminal terminal;
    if (description->kind == &pty_master_kind()) {
      const pb::PtyMaster& master = description->message->pty_master();
      if (!master.opened()) continue;
      terminal.set_number(master.number());
      terminals.insert_or_assign(pty_device(master.number()), terminal);
    } else if (description->outer && S_ISCHR(description->stat.st_mode)) {
      terminal.set_outer(true);
      terminal.set_rank(description->outer->rank);
      terminal.set_fd(description->outer->fd);
      terminals.emplace(description->stat.st_rdev, terminal);
    }
  }
  return terminals;
}

}  // namespace

void capture_controlling_terminals(FileScan& scan, const std::vector<StoppedProcess>& processes,
                                   const std::vector<pb::Process*>& states) {
  const Terminals terminals = terminals_of(scan);
  if (terminals.empty()) return;
  std::map<pid_t, uint32_t> groups;  // the agent's number, the capsule's
  std::set<uint32_t> inside;         // sessions whose leader is in the capsule
  for (size_t i = 0; i < processes.size(); ++i) {
    if (processes[i].ref.zombie) continue;
    groups[processes[i].stat.pgrp] = states[i]->pgid();
    if (states[i]->sid() == states[i]->pid()) inside.insert(states[i]->sid());
  }
  for (size_t i = 0; i < processes.size(); ++i) {
    const ProcStat& stat = processes[i].stat;
    if (processes[i].ref.zombie || stat.tty_nr == 0 || inside.count(states[i]->sid()) == 0) continue;
    const auto terminal = terminals.find(device_of_tty_nr(stat.tty_nr));
    if (terminal == terminals.end()) continue;
    pb::Terminal& message = *states[i]->mutable_terminal();
    message = terminal->second;
    const auto foreground = groups.find(stat.tty_foreground);
    if (states[i]->sid() == states[i]->pid() && foreground != groups.end()) message.set_foreground(foreground->second);
  }
}

}  // namespace icp
