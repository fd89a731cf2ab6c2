// SPDX-License-Identifier: GPL-2.0-or-later
// Whose System V objects the agent makes.
#pragma once

#include <sys/types.h>

namespace icp {

// While it lives, the calling thread's effective uid and gid are the user's, so that new System V objects have the
// user as creator and owner: the kernel takes both from the effective ids and never changes the creator afterwards.
// A non-zero effective uid also puts the effective capabilities away; real and saved ids stay, so the user can
// neither signal nor trace the thread. Raw system calls: glibc's setresuid() would change every thread.
//
// Goes back in its destructor, and aborts if that should fail. Not root: does nothing, and throws kPermission when
// asked for another user. One thread only; not to be nested.
class IpcIdentity {
 public:
  IpcIdentity(uid_t uid, gid_t gid);
  ~IpcIdentity();
  IpcIdentity(const IpcIdentity&) = delete;
  IpcIdentity& operator=(const IpcIdentity&) = delete;

 private:
  void go_back();
  bool active_ = false;
  uid_t old_uid_ = 0;
  gid_t old_gid_ = 0;
  int death_signal_ = 0;
};

}  // namespace icp
