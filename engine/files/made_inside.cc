// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/made_inside.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

namespace icp {

RemoteProcess* process_of(const RestoreContext& context, uint32_t pid) {
  RemoteProcess* const process = pid != 0 && context.options.process_of ? context.options.process_of(pid) : nullptr;
  if (process != nullptr) process->reset_scratch();
  return process;
}

RemoteProcess& init_of(const RestoreContext& context, const pb::OpenFile& file) {
  constexpr uint32_t kInit = 1;
  RemoteProcess* const init = process_of(context, kInit);
  if (init == nullptr) throw_bad_file(file, "there is no process to open it");
  return *init;
}

BriefChild::BriefChild(RemoteProcess& remote)
    : remote_(remote),
      number_(static_cast<uint64_t>(remote.call("cannot start a process", SYS_clone, {CLONE_VM, 0, 0, 0, 0}))),
      pid_(remote.last_child()),
      thread_(Tracee::adopt(pid_)) {}

void BriefChild::end() {
  ::kill(pid_, SIGKILL);
  thread_.forget_ended();
  remote_.call("cannot wait for a process", SYS_wait4, {number_, 0, __WALL, 0});
}

void MadeInsideKind::create(RestoreContext& context, ImageFiles files) const {
  for (const pb::OpenFile* file : files) {
    check_image(*file);
    context.made_inside.insert(file->id());
  }
}

void MadeInsideKind::finish(FinishContext& context, const pb::FileDescriptor& descriptor,
                            const pb::OpenFile& file) const {
  if (!duplicate_made(context, descriptor)) move_to(context.remote, make(context.remote, file), descriptor);
}

void move_to(RemoteProcess& remote, uint64_t made, const pb::FileDescriptor& descriptor) {
  const auto want = static_cast<uint64_t>(descriptor.fd());
  if (made == want) {
    remote.call("cannot set up a descriptor", SYS_fcntl, {want, F_SETFD, descriptor.cloexec() ? FD_CLOEXEC : 0ul});
    return;
  }
  remote.call("cannot move a descriptor", SYS_dup3, {made, want, descriptor.cloexec() ? O_CLOEXEC : 0ul});
  remote.call("cannot close a descriptor", SYS_close, {made});
}

bool duplicate_made(FinishContext& context, const pb::FileDescriptor& descriptor) {
  for (const pb::FileDescriptor& other : context.process.fds()) {
    if (&other == &descriptor) return false;
    if (other.file() != descriptor.file()) continue;
    context.remote.call("cannot duplicate a descriptor", SYS_dup3,
                        {static_cast<uint64_t>(other.fd()), static_cast<uint64_t>(descriptor.fd()),
                         descriptor.cloexec() ? O_CLOEXEC : 0ul});
    return true;
  }
  return false;
}

}  // namespace icp
