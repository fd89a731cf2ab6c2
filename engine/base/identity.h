// SPDX-License-Identifier: GPL-2.0-or-later
// Whose rights the agent uses when it touches files.
#pragma once

#include <sys/types.h>

#include <vector>

namespace icp {

// A user as Slurm (or the caller) names it: never taken from an image.
struct Identity {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;

  // Real ids and groups of a running process, from /proc/PID/status.
  static Identity of_process(pid_t pid);
};

// While it lives, file-system accesses of the calling thread have the rights of `identity` and nothing
// more: setfsuid, setfsgid and setgroups by raw system calls, which are per thread in the kernel, and a
// non-zero fsuid drops the capabilities that override file permissions. Created files belong to the
// user. Restores root in its destructor; aborts the process if that should fail. Does nothing when the
// process is not root. One thread only; may not be nested with another identity.
class FsIdentity {
 public:
  explicit FsIdentity(const Identity& identity);
  ~FsIdentity();
  FsIdentity(const FsIdentity&) = delete;
  FsIdentity& operator=(const FsIdentity&) = delete;

 private:
  bool active_ = false;
  int death_signal_ = 0;  // PR_SET_PDEATHSIG, which the kernel forgets at every change of fsuid
  uid_t old_uid_ = 0;
  gid_t old_gid_ = 0;
  std::vector<gid_t> old_groups_;
};

}  // namespace icp
