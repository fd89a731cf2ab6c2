// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/thread_check.h"

#include <linux/kcmp.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

constexpr size_t kMostFindings = 3;  // of one process: a thousand threads have the same to say

// linux/ptrace.h of Linux 6.4, which older headers lack.
constexpr int kGetUserDispatch = 0x4211;
struct UserDispatch {
  uint64_t mode, selector, offset, length;
};

std::string thread_name(pid_t tid) { return fmt::format("thread {}", tid); }

void compare_ids(const ProcessRef& process, pid_t tid, const ProcStatus& leader, const ProcStatus& own,
                 Findings& findings) {
  const auto refuse = [&](std::string what, std::string remedy) {
    findings.push_back({process.pid, process.comm, thread_name(tid), std::move(what), std::move(remedy)});
  };
  if (own.uid != leader.uid || own.gid != leader.gid)
    refuse(fmt::format("has user and group ids of its own (uid {}/{}, gid {}/{})", own.uid[0], own.uid[1], own.gid[0],
                       own.gid[1]),
           "change them for the whole process, as setresuid(3) does");
  else if (own.groups != leader.groups)
    refuse("has supplementary groups of its own", "change them for the whole process, as setgroups(3) does");
  if (own.cap_prm != leader.cap_prm || own.cap_eff != leader.cap_eff || own.cap_inh != leader.cap_inh ||
      own.cap_bnd != leader.cap_bnd || own.cap_amb != leader.cap_amb)
    refuse(fmt::format("has capabilities of its own ({:#x}, the main thread {:#x})", own.cap_eff, leader.cap_eff),
           "change them before threads are made");
  if (own.no_new_privs != leader.no_new_privs && own.seccomp == 0)
    refuse("has set no_new_privs for itself alone", "set it before threads are made");
}

void compare_tables(const ProcessRef& process, pid_t tid, Findings& findings) {
  for (const auto& [kind, what] : {std::pair{KCMP_FS, "working directory, root directory or umask"},
                                   {KCMP_FILES, "descriptor table"},
                                   {KCMP_SYSVSEM, "list of semaphore undo values"}}) {
    // 0: shared, -1: one of them is gone, or a kernel that cannot tell.
    if (::syscall(SYS_kcmp, process.pid, tid, kind, 0, 0) <= 0) continue;
    findings.push_back({process.pid, process.comm, thread_name(tid), fmt::format("has a {} of its own", what),
                        "do without unshare(2) in threads"});
  }
}

constexpr std::array kNamespaces = {"mnt", "net", "uts", "ipc", "pid", "user", "cgroup", "time"};
using Namespaces = std::array<std::string, kNamespaces.size()>;  // empty: none, in this kernel or any more

Namespaces namespaces_of(pid_t pid, const std::string& below) {
  Namespaces links;
  for (size_t i = 0; i < kNamespaces.size(); ++i) {
    try {
      links[i] = read_proc_link(pid, fmt::format("{}ns/{}", below, kNamespaces[i]));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  return links;
}

void compare_namespaces(const ProcessRef& process, pid_t tid, const Namespaces& leader, Findings& findings) {
  const Namespaces own = namespaces_of(process.pid, fmt::format("task/{}/", tid));
  for (size_t i = 0; i < kNamespaces.size(); ++i) {
    if (own[i] == leader[i] || own[i].empty() || leader[i].empty()) continue;
    findings.push_back({process.pid, process.comm, thread_name(tid),
                        fmt::format("is in another {} namespace", kNamespaces[i]),
                        "do without unshare(2) and setns(2) in threads"});
  }
}

bool check_seccomp(const ProcessRef& process, pid_t tid, const ProcStatus& own, Findings& findings) {
  if (own.seccomp == 0) return true;
  findings.push_back({process.pid, process.comm, tid == process.pid ? "" : thread_name(tid),
                      own.seccomp == 1 ? "is in seccomp's strict mode" : "has a seccomp filter",
                      "run it without the sandbox that installs it"});
  return false;
}

// False when the thread has ended.
bool read_thread(pid_t pid, pid_t tid, ProcStatus& status) {
  try {
    status = ProcStatus::parse(read_proc(pid, fmt::format("task/{}/status", tid)));
    return true;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;
    return false;
  }
}

// `namespaces`: the leader's; null: the thread can have no others.
void check_thread(const ProcessRef& process, pid_t tid, const ProcStatus& leader, const Namespaces* namespaces,
                  Findings& findings) {
  ProcStatus own;
  if (!read_thread(process.pid, tid, own)) return;
  check_seccomp(process, tid, own, findings);
  compare_ids(process, tid, leader, own, findings);
  compare_tables(process, tid, findings);
  if (namespaces != nullptr) compare_namespaces(process, tid, *namespaces, findings);
}

// Calls from anywhere but one range become SIGSYS.
void check_user_dispatch(const ProcessRef& process, pid_t tid, Findings& findings) {
  UserDispatch dispatch{};
  if (::ptrace(static_cast<__ptrace_request>(kGetUserDispatch), tid, sizeof dispatch, &dispatch) != 0) return;
  if (dispatch.mode == 0) return;
  findings.push_back({process.pid, process.comm, thread_name(tid),
                      "catches its own system calls (PR_SET_SYSCALL_USER_DISPATCH)", "run it without that, as Wine"});
}

}  // namespace

void check_thread_states(const ProcessRef& process, const ProcStatus& leader, Findings& findings) {
  const size_t before = findings.size();
  const Namespaces namespaces = namespaces_of(process.pid, "");
  for (const pid_t tid : list_proc_numbers(process.pid, "task")) {
    if (tid != process.pid) check_thread(process, tid, leader, &namespaces, findings);
    if (findings.size() >= before + kMostFindings) return;
  }
}

void check_stopped_threads(const StoppedProcess& process) {
  Findings findings;
  check_seccomp(process.ref, process.ref.pid, process.status, findings);
  // Only a privileged thread has namespaces of its own, or with a user namespace of its own, which a thread cannot get.
  const bool privileged = process.status.cap_prm != 0;
  const Namespaces namespaces = privileged ? namespaces_of(process.ref.pid, "") : Namespaces();
  for (const Tracee& thread : process.threads) {
    if (!findings.empty()) break;
    if (thread.tid() != process.ref.pid)
      check_thread(process.ref, thread.tid(), process.status, privileged ? &namespaces : nullptr, findings);
    check_user_dispatch(process.ref, thread.tid(), findings);
  }
  if (!findings.empty()) throw Error(ErrorKind::kRefused, to_sentence(findings.front()));
}

}  // namespace icp
