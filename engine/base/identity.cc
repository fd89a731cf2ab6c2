// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/identity.h"

#include <grp.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

// glibc's setgroups() changes every thread; the raw call changes the calling one.
int set_thread_groups(const std::vector<gid_t>& groups) {
  return static_cast<int>(::syscall(SYS_setgroups, groups.size(), groups.data()));
}

// setfsuid() reports no error: asking again with an invalid id returns the current one.
uid_t current_fsuid() { return static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1))); }
gid_t current_fsgid() { return static_cast<gid_t>(::setfsgid(static_cast<gid_t>(-1))); }

}  // namespace

Identity Identity::of_process(pid_t pid) {
  const ProcStatus status = ProcStatus::read(pid);
  return {status.uid[0], status.gid[0], status.groups};
}

FsIdentity::FsIdentity(const Identity& identity) {
  if (::geteuid() != 0) return;
  old_uid_ = current_fsuid();
  old_gid_ = current_fsgid();
  const int count = ::getgroups(0, nullptr);
  if (count < 0) throw_errno("cannot read the agent's groups");
  old_groups_.resize(static_cast<size_t>(count));
  if (::getgroups(count, old_groups_.data()) < 0) throw_errno("cannot read the agent's groups");

  ::prctl(PR_GET_PDEATHSIG, &death_signal_);
  active_ = true;
  if (set_thread_groups(identity.groups) != 0) {
    active_ = false;
    throw_errno("cannot take the groups of user {}", identity.uid);
  }
  ::setfsgid(identity.gid);
  ::setfsuid(identity.uid);
  if (current_fsuid() != identity.uid || current_fsgid() != identity.gid) {
    this->~FsIdentity();
    active_ = false;
    throw_error(ErrorKind::kPermission, "cannot take the file-system identity of user {} group {}", identity.uid,
                identity.gid);
  }
}

FsIdentity::~FsIdentity() {
  if (!active_) return;
  ::setfsuid(old_uid_);
  ::setfsgid(old_gid_);
  if (set_thread_groups(old_groups_) != 0 || current_fsuid() != old_uid_ || current_fsgid() != old_gid_) {
    std::fputs("slurm-icp: cannot go back to the agent's own identity, giving up\n", stderr);
    std::abort();
  }
  if (death_signal_ != 0) ::prctl(PR_SET_PDEATHSIG, death_signal_);
}

}  // namespace icp
