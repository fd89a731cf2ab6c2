// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/file_owner.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/files/file_kind.h"

namespace icp {
namespace {

// Only files that may become ready later send signals. While the processes run, the others are not taken over: one that
// they close then would keep its locks for as long as we have it.
bool may_send_signals(const Description& description) {
  if (description.outer || (description.info.flags & O_PATH)) return false;
  const auto& locks = description.uses.front().locks;
  if (S_ISDIR(description.stat.st_mode)) return true;  // of what F_NOTIFY reports
  const bool lease =
      std::any_of(locks.begin(), locks.end(), [](const LockLine& lock) { return lock.kind == LockLine::Kind::kLease; });
  return lease || S_ISFIFO(description.stat.st_mode) || S_ISSOCK(description.stat.st_mode) ||
         (description.info.flags & O_ASYNC);
}

std::optional<f_owner_ex> owner_of(FileScan& scan, Description& description) {
  const int fd = scan.take(description);
  f_owner_ex owner{};
  if (fd < 0 || ::fcntl(fd, F_GETOWN_EX, &owner) != 0 || owner.pid == 0) return {};
  return owner;
}

// The capsule's number for the owner; for a group any process that belongs to it will do.
std::optional<pid_t> inside(const FileScan& scan, const f_owner_ex& owner, const std::vector<pb::Process*>& states) {
  if (owner.type != F_OWNER_PGRP) return scan.vpid(owner.pid);
  for (size_t i = 0; i < scan.processes().size(); i++) {
    if (::getpgid(scan.processes()[i].pid) != owner.pid) continue;
    return i < states.size() ? static_cast<pid_t>(states[i]->pgid()) : 1;
  }
  return {};
}

}  // namespace

void check_owner(FileScan& scan, Description& description) {
  if (!may_send_signals(description)) return;
  const auto owner = owner_of(scan, description);
  // Nothing but F_NOTIFY makes signals of a directory, and the kernel does not tell of what.
  if (owner && S_ISDIR(description.stat.st_mode)) {
    scan.refuse(description, fmt::format("{}, a directory with an owner for signals (F_NOTIFY)", description.target),
                "close it before a checkpoint");
    return;
  }
  if (!owner || inside(scan, *owner, {})) return;
  if (!(description.info.flags & O_ASYNC)) return;  // nobody is ever told
  scan.refuse(description,
              fmt::format("{} with signals (F_SETOWN) for {} {}, which is no process of the job", description.target,
                          owner->type == F_OWNER_TID ? "thread" : "process", owner->pid),
              "turn O_ASYNC off");
}

void capture_owner(FileScan& scan, Description& description, const std::vector<pb::Process*>& states) {
  if (description.info.flags & O_PATH) return;
  const int signal = ::fcntl(scan.take(description), F_GETSIG);
  if (signal > 0) description.message->set_owner_signal(signal);
  const auto owner = owner_of(scan, description);
  const auto pid = owner ? inside(scan, *owner, states) : std::nullopt;
  if (!pid || *pid <= 0) return;
  description.message->set_owner_pid(*pid);
  description.message->set_owner_type(owner->type);
}

void restore_owner(RemoteProcess& remote, const pb::OpenFile& file, int fd, int local) {
  const auto number = static_cast<uint64_t>(fd);
  if (file.owner_pid() != 0) {
    f_owner_ex owner{};
    owner.type = static_cast<decltype(owner.type)>(file.owner_type());
    owner.pid = file.owner_pid();
    remote.reset_scratch();
    const RemoteAddr at = remote.stage_value(owner);
    const int64_t result = remote.syscall(SYS_fcntl, {number, F_SETOWN_EX, at.value});
    if (result != 0) throw_bad_file(file, fmt::format("its owner {} cannot be set", owner.pid));
  }
  if (file.owner_signal() != 0 &&
      remote.syscall(SYS_fcntl, {number, F_SETSIG, static_cast<uint64_t>(file.owner_signal())}) != 0) {
    throw_bad_file(file, fmt::format("its signal {} cannot be set", file.owner_signal()));
  }
  if (!(file.flags() & O_ASYNC) || local < 0) return;
  const auto flags = static_cast<uint64_t>(::fcntl(local, F_GETFL) | O_ASYNC);
  remote.call("cannot set O_ASYNC", SYS_fcntl, {number, F_SETFL, flags});
}

}  // namespace icp
