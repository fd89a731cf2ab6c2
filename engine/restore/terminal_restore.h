// SPDX-License-Identifier: GPL-2.0-or-later
// Controlling terminals of sessions that are made again.
#pragma once

#include <map>

#include "engine/base/unique_fd.h"
#include "engine/files/file_table.h"
#include "engine/image/image.pb.h"
#include "engine/restore/tree_builder.h"

namespace icp {

// A terminal is taken by the leader of a session alone (TIOCSCTTY), and handed on by fork alone: so it is taken between
// the leader's setsid() and the forks of its children. All of it are calls in the processes. One thread.
class TerminalRestore {
 public:
  // `streams`: of the tasks, see FileRestoreOptions::outer. All outlive this object.
  TerminalRestore(const pb::Capsule& capsule, TreeBuilder& builder, const FileRestore& files,
                  const std::map<int, std::array<int, 3>>& streams);

  // The process has just made its session.
  void take(uint32_t pid);
  // All processes are there, in their groups: foreground groups; processes that had left their terminal.
  void settle();
  // /dev/tty, opened by a process whose terminal it is; none: no process has it.
  UniqueFd open(const pb::OpenFile& file);

 private:
  int fd_of(const pb::Terminal& terminal) const;
  void set_foreground(const pb::Process& leader);
  void leave(const pb::Process& process);

  std::map<uint32_t, const pb::Process*> processes_;
  TreeBuilder& builder_;
  const FileRestore& files_;
  const std::map<int, std::array<int, 3>>& streams_;
  std::map<uint32_t, bool> taken_;  // sessions with a terminal
};

}  // namespace icp
