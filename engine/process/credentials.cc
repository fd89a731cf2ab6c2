// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/credentials.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

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

// Root's own choice: a program of root that had given up capabilities, or groups, does without them again.
void give_up_capabilities(RemoteProcess& remote, const pb::Process& state, const Identity& identity) {
  const pb::Credentials& saved = state.credentials();
  if (identity.uid != 0 || saved.uid() != 0) return;
  const ProcStatus now =
      ProcStatus::parse(read_proc(remote.pid(), fmt::format("task/{}/status", remote.thread().tid())));
  const std::vector<gid_t> groups(saved.groups().begin(), saved.groups().end());
  if (now.cap_eff == saved.cap_effective() && now.cap_prm == saved.cap_permitted() &&
      now.cap_inh == saved.cap_inheritable() && now.cap_bnd == saved.cap_bounding() && now.groups == groups &&
      now.no_new_privs == state.no_new_privs())
    return;
  remote.reset_scratch();
  const RemoteAddr header = remote.stage_value(CapabilityHeader{});
  const RemoteAddr sets = remote.reserve(sizeof(CapabilitySets));
  remote.call("capget", SYS_capget, {header.value, sets.value});
  const CapabilitySets has = remote.read_value<CapabilitySets>(sets);
  constexpr int kKnown = 64;
  for (uint64_t capability = 0; capability < kKnown; ++capability) {
    // Past the kernel's last one it fails.
    if ((saved.cap_bounding() >> capability & 1) != 0) continue;
    if (remote.syscall(SYS_prctl, {PR_CAPBSET_DROP, capability, 0, 0, 0}) == -EINVAL) break;
  }
  remote.syscall(SYS_setgroups, {groups.size(), remote.stage(std::as_bytes(std::span(groups))).value});
  if (state.no_new_privs()) remote.call("prctl(PR_SET_NO_NEW_PRIVS)", SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
  const auto half = [](uint64_t mask, int upper) { return static_cast<uint32_t>(mask >> (32 * upper)); };
  CapabilitySets wanted{};
  for (int upper = 0; upper < 2; ++upper) {
    const size_t at = static_cast<size_t>(upper) * 3;
    wanted[at + 1] = half(saved.cap_permitted(), upper) & has[at + 1];
    wanted[at] = half(saved.cap_effective(), upper) & wanted[at + 1];
    wanted[at + 2] = half(saved.cap_inheritable(), upper) & (has[at + 1] | has[at + 2]);
  }
  remote.write_value(sets, wanted);
  remote.call("capset", SYS_capset, {header.value, sets.value});
}

}  // namespace icp
