// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/rights.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

// Raw calls: glibc's would look for other threads, and take locks that a forked child may not.
int set_capabilities(uint64_t mask) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  for (size_t i = 0; i < 2; ++i)
    data[i].effective = data[i].permitted = data[i].inheritable = static_cast<uint32_t>(mask >> 32 * i);
  return static_cast<int>(::syscall(SYS_capset, &header, data));
}

}  // namespace

const char* take_identity(const Identity& identity, uint64_t kept, bool ambient, bool dumpable) noexcept {
  const uid_t uid = identity.uid;
  const gid_t gid = identity.gid;
  if (::syscall(SYS_setgroups, identity.groups.size(), identity.groups.data()) != 0) return "take the user's groups";
  if (::syscall(SYS_setresgid, gid, gid, gid) != 0) return "take the user's group";
  if (uid == 0) return nullptr;
  if (::prctl(PR_SET_KEEPCAPS, 1) != 0 || ::syscall(SYS_setresuid, uid, uid, uid) != 0) return "take the user's id";
  if (::prctl(PR_SET_KEEPCAPS, 0) != 0) return "give capabilities up";
  return keep_capabilities(kept, ambient, dumpable);
}

const char* keep_capabilities(uint64_t kept, bool ambient, bool dumpable) noexcept {
  if (set_capabilities(kept) != 0) return "give capabilities up";
  for (int capability = 0; ambient && capability < 64; ++capability) {
    if ((kept >> capability & 1) == 0) continue;
    if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0) return "keep a capability over exec";
  }
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return "set no_new_privs";
  if (::prctl(PR_SET_DUMPABLE, dumpable ? 1 : 0) != 0) return "become dumpable, or not";
  return nullptr;
}

void check_identity(const Identity& identity, uint64_t kept) {
  const ProcStatus status = ProcStatus::read(::getpid());
  const auto all = [](const auto& ids, auto id) {
    return std::all_of(ids.begin(), ids.end(), [id](auto other) { return other == id; });
  };
  const bool right = identity.uid == 0 || (status.cap_prm == kept && status.cap_eff == kept && status.cap_amb == 0);
  if (!all(status.uid, identity.uid) || !all(status.gid, identity.gid) || !right) {
    throw_error(ErrorKind::kPermission, "root's rights could not be given up: uid {}, capabilities {:#x}",
                status.uid[1], status.cap_eff);
  }
}

}  // namespace icp
