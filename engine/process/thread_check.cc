// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/thread_check.h"

#include <linux/kcmp.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/process/credentials.h"
#include "engine/process/directories.h"
#include "engine/process/seccomp.h"
#include "engine/process/thread_namespaces.h"
#include "engine/trace/seccomp_book.h"

namespace icp {
namespace {

constexpr size_t kMostFindings = 3;  // of one process: a thousand threads have the same to say

// linux/ptrace.h of Linux 6.4, which older headers lack.
constexpr int kGetUserDispatch = 0x4211;
struct UserDispatch {
  uint64_t mode, selector, offset, length;
};

void refuse(const ProcessRef& process, pid_t tid, std::string what, std::string hint, Findings& findings) {
  findings.push_back({process.pid, process.comm, fmt::format("thread {}", tid), std::move(what), std::move(hint)});
}

void compare_ids(const ProcessRef& process, pid_t tid, const ProcStatus& leader, const ProcStatus& own,
                 Findings& findings) {
  if (keeps_rights()) return;
  if (own.uid != leader.uid || own.gid != leader.gid)
    refuse(process, tid,
           fmt::format("has user and group ids of its own (uid {}/{}, gid {}/{})", own.uid[0], own.uid[1], own.gid[0],
                       own.gid[1]),
           "change them for the whole process, as setresuid(3) does", findings);
  else if (own.groups != leader.groups)
    refuse(process, tid, "has supplementary groups of its own",
           "change them for the whole process, as setgroups(3) does", findings);
  if (own.cap_prm != leader.cap_prm || own.cap_eff != leader.cap_eff || own.cap_inh != leader.cap_inh ||
      own.cap_bnd != leader.cap_bnd || own.cap_amb != leader.cap_amb)
    refuse(process, tid,
           fmt::format("has capabilities of its own ({:#x}, the main thread {:#x})", own.cap_eff, leader.cap_eff),
           "change them before threads are made", findings);
}

// Whether two threads share something. 0: they do, -1: one of them is gone, or a kernel that cannot tell.
bool differ(pid_t a, pid_t b, int kind) { return ::syscall(SYS_kcmp, a, b, kind, 0, 0) > 0; }

// A thread of the kernel's that does io_uring's work has no list of its own; the ring itself is refused by name.
bool works_for_io_uring(pid_t pid, pid_t tid) {
  return read_proc(pid, fmt::format("task/{}/comm", tid)).starts_with("iou-");
}

void compare_tables(const ProcessRef& process, pid_t tid, Findings& findings) {
  for (const auto& [kind, what] :
       {std::pair{KCMP_FILES, "descriptor table"}, {KCMP_SYSVSEM, "list of semaphore undo values"}}) {
    if (differ(process.pid, tid, kind) && !works_for_io_uring(process.pid, tid))
      refuse(process, tid, fmt::format("has a {} of its own", what), "do without unshare(2) in threads", findings);
  }
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

// Looks at the threads of one process one after the other, the main one first.
class ThreadLook {
 public:
  // `stopped`: nothing is stopped any more to look at it. Not `namespaces`: the threads can have no others.
  ThreadLook(const ProcessRef& process, const ProcStatus& leader, bool stopped, bool namespaces, Findings& findings)
      : process_(process), leader_(leader), stopped_(stopped), findings_(findings) {
    if (namespaces) namespaces_ = ThreadNamespaces(process.pid);
    look_at_filters(process.pid, leader.seccomp);
  }

  // Threads by their places. Nothing when it has ended, or has nothing of its own.
  std::optional<ThreadOwn> look(size_t place, pid_t tid) {
    ProcStatus status;
    if (!read_thread(process_.pid, tid, status)) return {};
    look_at_filters(tid, status.seccomp);
    compare_ids(process_, tid, leader_, status, findings_);
    compare_tables(process_, tid, findings_);
    ThreadOwn own;
    pid_t maker = process_.pid;
    if (differ(process_.pid, tid, KCMP_FS)) {
      own.directories = status;
      const auto same = std::find_if(owners_.begin(), owners_.end(),
                                     [&](const auto& owner) { return !differ(owner.second, tid, KCMP_FS); });
      if (same == owners_.end()) {
        owners_.emplace_back(place, tid);
        check_directories(process_, tid, findings_);
      } else {
        std::tie(own.maker, maker) = *same;
      }
    }
    if (!same_credentials(status, leader_)) own.status = std::move(status);
    std::string problem;
    own.namespaces = namespaces_.own(tid, maker, problem);
    if (!problem.empty()) refuse(process_, tid, problem, "do without unshare(2) and setns(2) in threads", findings_);
    const bool nothing = !own.status && !own.directories && own.namespaces.empty();
    return nothing ? std::nullopt : std::optional(std::move(own));
  }

 private:
  void look_at_filters(pid_t tid, int mode) {
    if (mode == 0) return seccomp_book().forget(tid);
    check_seccomp(process_, tid, mode, stopped_, findings_);
  }

  const ProcessRef& process_;
  const ProcStatus& leader_;
  const bool stopped_;
  ThreadNamespaces namespaces_;
  Findings& findings_;
  std::vector<std::pair<size_t, pid_t>> owners_;  // of directories
};

// Calls from anywhere but one range become SIGSYS.
void check_user_dispatch(const ProcessRef& process, pid_t tid, Findings& findings) {
  UserDispatch dispatch{};
  if (::ptrace(static_cast<__ptrace_request>(kGetUserDispatch), tid, sizeof dispatch, &dispatch) != 0) return;
  if (dispatch.mode == 0) return;
  refuse(process, tid, "catches its own system calls (PR_SET_SYSCALL_USER_DISPATCH)", "run it without that, as Wine",
         findings);
}

}  // namespace

void check_thread_states(const ProcessRef& process, const ProcStatus& leader, Findings& findings) {
  const size_t before = findings.size();
  ThreadLook look(process, leader, false, true, findings);
  size_t place = 0;
  for (const pid_t tid : list_proc_numbers(process.pid, "task")) {
    if (tid != process.pid) look.look(++place, tid);
    if (findings.size() >= before + kMostFindings) return;
  }
}

void note_thread_states(StoppedProcess& process) {
  Findings findings;
  // Only a privileged thread has namespaces of its own, or with a user namespace of its own, which a thread cannot get.
  const bool several = process.threads.size() > 1;
  const bool privileged = several && (process.status.cap_prm != 0 || keeps_rights());
  ThreadLook look(process.ref, process.status, true, privileged, findings);
  for (size_t place = 0; place < process.threads.size() && findings.empty(); ++place) {
    Tracee& thread = process.threads[place];
    check_user_dispatch(process.ref, thread.tid(), findings);
    if (place == 0) continue;
    if (std::optional<ThreadOwn> own = look.look(place, thread.tid())) process.own.emplace(place, std::move(*own));
  }
  if (!findings.empty())
    throw Error(findings.front().transient ? ErrorKind::kBusy : ErrorKind::kRefused, to_sentence(findings.front()));
  for (Tracee& thread : process.threads) suspend_filters(thread);
}

}  // namespace icp
