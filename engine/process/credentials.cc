// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/credentials.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {

void check_credentials(const ProcessRef& process, Findings& findings) {
  if (keeps_rights()) return;
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

bool keeps_rights() { return ::geteuid() == 0; }

namespace {

void fill(const ProcStatus& status, pb::Credentials& saved) {
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
}

}  // namespace

void capture_credentials(const ProcStatus& status, pb::Process& state) {
  fill(status, *state.mutable_credentials());
  state.set_no_new_privs(status.no_new_privs);
  state.set_umask(status.umask);
}

void capture_thread_credentials(const ProcStatus& status, pb::Thread& state) {
  fill(status, *state.mutable_credentials());
  state.set_no_new_privs(status.no_new_privs);
}

bool same_credentials(const ProcStatus& a, const ProcStatus& b) {
  return a.uid == b.uid && a.gid == b.gid && a.groups == b.groups && a.cap_prm == b.cap_prm && a.cap_eff == b.cap_eff &&
         a.cap_inh == b.cap_inh && a.cap_bnd == b.cap_bnd && a.cap_amb == b.cap_amb && a.no_new_privs == b.no_new_privs;
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

namespace {

// linux/securebits.h and linux/prctl.h
constexpr uint32_t kGetSecurebits = 27, kSetSecurebits = 28;
constexpr uint64_t kKeepCaps = 1 << 4, kNoSetuidFixup = 1 << 2;
constexpr uint64_t kMostCapabilities = 64;

uint64_t securebits_of(const pb::Thread& thread) {
  for (const pb::Control& control : thread.controls())
    if (control.option() == kGetSecurebits) return control.value();
  return 0;
}

struct Rights {
  const pb::Credentials& saved;
  bool no_new_privs;
  uint64_t securebits;
};

bool has_them(const ProcStatus& now, const Rights& rights) {
  const pb::Credentials& saved = rights.saved;
  const std::vector<gid_t> groups(saved.groups().begin(), saved.groups().end());
  return rights.securebits == 0 && now.uid == std::array{saved.uid(), saved.euid(), saved.suid(), saved.fsuid()} &&
         now.gid == std::array{saved.gid(), saved.egid(), saved.sgid(), saved.fsgid()} && now.groups == groups &&
         now.cap_eff == saved.cap_effective() && now.cap_prm == saved.cap_permitted() &&
         now.cap_inh == saved.cap_inheritable() && now.cap_bnd == saved.cap_bounding() &&
         now.cap_amb == saved.cap_ambient() && now.no_new_privs == rights.no_new_privs;
}

// Ids without what they mean for capabilities, which have been told by themselves.
void take_ids(RemoteProcess& remote, const pb::Credentials& saved) {
  const std::vector<gid_t> groups(saved.groups().begin(), saved.groups().end());
  remote.reset_scratch();
  remote.call("setgroups", SYS_setgroups, {groups.size(), remote.stage(std::as_bytes(std::span(groups))).value});
  remote.call("setresgid", SYS_setresgid, {saved.gid(), saved.egid(), saved.sgid()});
  remote.syscall(SYS_setfsgid, {saved.fsgid()});
  remote.call("setresuid", SYS_setresuid, {saved.uid(), saved.euid(), saved.suid()});
  remote.syscall(SYS_setfsuid, {saved.fsuid()});
}

// For each capability of `mask` one call; past the kernel's last one they fail with EINVAL.
void each_capability(RemoteProcess& remote, uint64_t mask, uint64_t option, uint64_t first, bool second) {
  for (uint64_t capability = 0; capability < kMostCapabilities; ++capability) {
    if ((mask >> capability & 1) == 0) continue;
    const int64_t result = second ? remote.syscall(SYS_prctl, {option, first, capability, 0, 0})
                                  : remote.syscall(SYS_prctl, {option, capability, 0, 0, 0});
    if (result == -EINVAL) break;
  }
}

CapabilitySets sets_of(const pb::Credentials& saved, const CapabilitySets& has) {
  const auto half = [](uint64_t mask, size_t upper) { return static_cast<uint32_t>(mask >> (32 * upper)); };
  CapabilitySets wanted{};
  for (size_t upper = 0; upper < 2; ++upper) {
    const size_t at = upper * 3;
    wanted[at + 1] = half(saved.cap_permitted(), upper) & has[at + 1];
    wanted[at] = half(saved.cap_effective(), upper) & wanted[at + 1];
    wanted[at + 2] = half(saved.cap_inheritable(), upper) & (has[at + 1] | has[at + 2]);
  }
  return wanted;
}

// Each step takes what a later one takes away: inheritable ones to make them ambient, CAP_SETPCAP for the bounding set
// and securebits (capabilities(7)).
void take_rights(RemoteProcess& remote, const Rights& rights) {
  const pb::Credentials& saved = rights.saved;
  remote.reset_scratch();
  const RemoteAddr header = remote.stage_value(CapabilityHeader{}), sets = remote.reserve(sizeof(CapabilitySets));
  remote.call("capget", SYS_capget, {header.value, sets.value});
  const CapabilitySets has = remote.read_value<CapabilitySets>(sets);
  const CapabilitySets wanted = sets_of(saved, has);
  remote.syscall(SYS_prctl, {kSetSecurebits, kNoSetuidFixup, 0, 0, 0});
  take_ids(remote, saved);
  remote.reset_scratch();
  remote.stage_value(CapabilityHeader{});
  CapabilitySets first = has;
  first[2] = wanted[2];
  first[5] = wanted[5];
  remote.stage_value(first);  // at the same places
  remote.call("capset", SYS_capset, {header.value, sets.value});
  remote.syscall(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0});
  each_capability(remote, saved.cap_ambient(), PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, true);
  each_capability(remote, ~saved.cap_bounding(), PR_CAPBSET_DROP, 0, false);
  remote.syscall(SYS_prctl, {kSetSecurebits, rights.securebits, 0, 0, 0});
  if (rights.no_new_privs) remote.call("prctl(PR_SET_NO_NEW_PRIVS)", SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
  remote.write_value(sets, wanted);
  remote.call("capset", SYS_capset, {header.value, sets.value});
}

}  // namespace

void restore_securebits(RemoteProcess& remote, const pb::Thread& thread) {
  const uint64_t bits = securebits_of(thread);
  if ((bits & kKeepCaps) != 0)  // anybody's
    remote.call("prctl(PR_SET_KEEPCAPS)", SYS_prctl, {PR_SET_KEEPCAPS, 1, 0, 0, 0});
  // The others are root's to set; who is not root has got them from where the step was started.
  if ((bits & ~kKeepCaps) != 0) remote.syscall(SYS_prctl, {kSetSecurebits, bits, 0, 0, 0});
}

void take_saved_rights(RemoteProcess& remote, const pb::Process& state, const pb::Thread& thread) {
  const bool own = thread.has_credentials();
  const Rights rights{own ? thread.credentials() : state.credentials(),
                      own ? thread.no_new_privs() : state.no_new_privs(), securebits_of(thread)};
  const ProcStatus now =
      ProcStatus::parse(read_proc(remote.pid(), fmt::format("task/{}/status", remote.thread().tid())));
  if (!has_them(now, rights)) take_rights(remote, rights);
}

}  // namespace icp
