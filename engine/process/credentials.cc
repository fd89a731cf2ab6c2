// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/credentials.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>

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

namespace {

constexpr uint32_t kCapabilityVersion3 = 0x20080522;  // _LINUX_CAPABILITY_VERSION_3 of linux/capability.h

struct CapabilityHeader {
  uint32_t version = kCapabilityVersion3;
  int pid = 0;
};
using CapabilitySets = std::array<uint32_t, 6>;  // effective, permitted, inheritable; then their upper halves

}  // namespace

// The thread has had its user's ids from the beginning (engine/broker/operations.cc); what goes now is the capability
// it was built with, and whatever else it may have.
void restore_credentials(RemoteProcess& remote, const pb::Process& state, const Identity& identity) {
  if (identity.uid == 0) return;
  remote.reset_scratch();
  const RemoteAddr header = remote.stage_value(CapabilityHeader{});
  const RemoteAddr sets = remote.stage_value(CapabilitySets{});
  remote.call("capset", SYS_capset, {header.value, sets.value});
  remote.call("capget", SYS_capget, {header.value, sets.value});
  if (remote.read_value<CapabilitySets>(sets) != CapabilitySets{})
    throw_error(ErrorKind::kPermission, "process {} could not give up its capabilities", state.pid());
}

}  // namespace icp
