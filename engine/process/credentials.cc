// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/credentials.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {

void check_credentials(const ProcessRef& process, Findings& findings) {
  const ProcStatus status = ProcStatus::read(process.pid);
  const auto same = [](const auto& ids) {
    return std::all_of(ids.begin(), ids.end(), [&](auto id) { return id == ids[0]; });
  };
  if (!same(status.uid) || !same(status.gid)) {
    findings.push_back({process.pid, process.comm, "credentials",
                        fmt::format("runs with another user or group id than its real one (uid {}/{}, gid {}/{})",
                                    status.uid[0], status.uid[1], status.gid[0], status.gid[1]),
                        "a set-user-id program cannot be checkpointed"});
  } else if (status.uid[0] != 0 && status.cap_prm != 0) {
    findings.push_back({process.pid, process.comm, "credentials",
                        fmt::format("has capabilities ({:#x}) though its user is not root", status.cap_prm),
                        "a program with file capabilities cannot be checkpointed"});
  }
}

void capture_credentials(const ProcStatus& status, pb::Process& state) {
  pb::Credentials& saved = *state.mutable_credentials();
  saved.set_uid(status.uid[0]);
  saved.set_euid(status.uid[1]);
  saved.set_suid(status.uid[2]);
  saved.set_fsuid(status.uid[3]);
  saved.set_gid(status.gid[0]);
  saved.set_egid(status.gid[1]);
  saved.set_sgid(status.gid[2]);
  saved.set_fsgid(status.gid[3]);
  for (const gid_t group : status.groups) saved.add_groups(group);
  saved.set_cap_inheritable(status.cap_inh);
  saved.set_cap_permitted(status.cap_prm);
  saved.set_cap_effective(status.cap_eff);
  saved.set_cap_bounding(status.cap_bnd);
  saved.set_cap_ambient(status.cap_amb);
  state.set_no_new_privs(status.no_new_privs);
  state.set_umask(status.umask);
}

void restore_credentials(RemoteProcess& remote, const pb::Process& state, const Identity& identity) {
  const gid_t wanted = state.credentials().gid();
  const bool member = std::find(identity.groups.begin(), identity.groups.end(), wanted) != identity.groups.end();
  const uint64_t gid = member ? wanted : identity.gid;
  const uint64_t uid = identity.uid;
  remote.reset_scratch();
  const RemoteAddr groups = remote.stage(std::as_bytes(std::span(identity.groups)));
  remote.call("setgroups", SYS_setgroups, {identity.groups.size(), groups.value});
  remote.call("setresgid", SYS_setresgid, {gid, gid, gid});
  remote.call("setresuid", SYS_setresuid, {uid, uid, uid});
  // The image says what the process executes next: it must not become more than its user.
  if (uid != 0) remote.call("prctl(PR_SET_NO_NEW_PRIVS)", SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
}

}  // namespace icp
