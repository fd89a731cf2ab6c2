// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ipc_identity.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "engine/base/error.h"

namespace icp {
namespace {

int set_effective_uid(uid_t uid) { return static_cast<int>(::syscall(SYS_setresuid, -1, uid, -1)); }
int set_effective_gid(gid_t gid) { return static_cast<int>(::syscall(SYS_setresgid, -1, gid, -1)); }

}  // namespace

IpcIdentity::IpcIdentity(uid_t uid, gid_t gid) : old_uid_(::geteuid()), old_gid_(::getegid()) {
  if (old_uid_ == uid && old_gid_ == gid) return;
  if (old_uid_ != 0) {
    throw_error(ErrorKind::kPermission, "cannot make System V objects of user {} group {}: not root", uid, gid);
  }
  // The kernel forgets the parent-death signal when the effective ids change (prctl(2)).
  ::prctl(PR_GET_PDEATHSIG, &death_signal_);
  if (set_effective_gid(gid) != 0) throw_errno("cannot take the effective group {}", gid);
  active_ = true;
  if (set_effective_uid(uid) != 0) {
    const int saved = errno;
    go_back();
    errno = saved;
    throw_errno("cannot take the effective user {}", uid);
  }
}

IpcIdentity::~IpcIdentity() {
  if (active_) go_back();
}

void IpcIdentity::go_back() {
  // The uid first: only root may take a group that is not one of its three.
  if (set_effective_uid(old_uid_) != 0 || set_effective_gid(old_gid_) != 0) {
    std::perror("slurm-icp: cannot go back to the agent's own user, giving up");
    std::abort();
  }
  ::prctl(PR_SET_PDEATHSIG, death_signal_);
}

}  // namespace icp
