// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/seccomp.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <span>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/trace/seccomp_book.h"

namespace icp {
namespace {

constexpr const char* kHint = "run it without the sandbox that installs it";
constexpr uint32_t kLeastFlags = SECCOMP_FILTER_FLAG_LOG;

struct Needed {
  const char* name;
  long number;
  std::array<uint64_t, 2> arguments;
  bool leader = true;  // in the main thread alone
};

// What is called in every process or thread, at a checkpoint and before a restored one runs. The rest is looked at when
// it comes to it (SeccompBook::check_call).
constexpr Needed kNeeded[] = {{"gettid", SYS_gettid, {}, false},
                              {"tgkill", SYS_tgkill, {}, false},
                              {"rt_sigreturn", SYS_rt_sigreturn, {}, false},
                              {"rt_sigaction", SYS_rt_sigaction, {SIGINT, 0}},
                              {"sigaltstack", SYS_sigaltstack, {}, false},
                              {"personality", SYS_personality, {0xffffffff, 0}},
                              {"prctl(PR_GET_NAME)", SYS_prctl, {PR_GET_NAME, 0}, false},
                              {"prctl(PR_GET_TID_ADDRESS)", SYS_prctl, {PR_GET_TID_ADDRESS, 0}, false},
                              {"prctl(PR_GET_PDEATHSIG)", SYS_prctl, {PR_GET_PDEATHSIG, 0}},
                              {"prctl(PR_GET_CHILD_SUBREAPER)", SYS_prctl, {PR_GET_CHILD_SUBREAPER, 0}},
                              {"prctl(PR_GET_DUMPABLE)", SYS_prctl, {PR_GET_DUMPABLE, 0}},
                              {"prlimit64", SYS_prlimit64, {}},
                              {"getitimer", SYS_getitimer, {}},
                              {"brk", SYS_brk, {}},
                              {"munmap", SYS_munmap, {}}};

const char* first_forbidden(const SeccompChain& chain, bool leader) {
  for (const Needed& call : kNeeded) {
    if (call.leader && !leader) continue;
    if (!lets_through(seccomp_action(chain, seccomp_call(call.number, {call.arguments[0], call.arguments[1]}))))
      return call.name;
  }
  return nullptr;
}

// By which call a filter can be installed under those before it: at the time there was one.
std::optional<long> installing_call(const SeccompChain& before) {
  if (lets_through(seccomp_action(before, seccomp_call(SYS_seccomp, {SECCOMP_SET_MODE_FILTER, 0})))) return SYS_seccomp;
  if (lets_through(seccomp_action(before, seccomp_call(SYS_prctl, {PR_SET_SECCOMP, SECCOMP_MODE_FILTER}))))
    return SYS_prctl;
  return {};
}

// Its listener is a process that we know nothing of.
bool is_supervised(const SeccompFilter& filter) {
  return std::any_of(filter.program.begin(), filter.program.end(), [](const sock_filter& step) {
    return step.code == (BPF_RET | BPF_K) && (step.k & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF;
  });
}

// Empty: they can be saved and given back.
std::string obstacle(const SeccompChain& chain, bool leader) {
  for (size_t i = 0; i < chain.size(); ++i) {
    const SeccompChain before(chain.begin(), chain.begin() + static_cast<ptrdiff_t>(i));
    if (is_supervised(*chain[i])) return "has a seccomp filter that asks a supervisor";
    if ((chain[i]->flags & ~kLeastFlags) != 0) return "has a seccomp filter with flags that are not known";
    if (Tracee::may_suspend_seccomp()) continue;
    const auto call = installing_call(before);
    if (!call || (*call == SYS_prctl && chain[i]->flags != 0))
      return "has a seccomp filter that forbids to install its next one again";
  }
  if (Tracee::may_suspend_seccomp()) return {};
  if (const char* call = first_forbidden(chain, leader))
    return fmt::format("has a seccomp filter that forbids {}, which a checkpoint takes", call);
  return {};
}

// How many filters a thread has; Linux 5.9 tells.
std::optional<size_t> number_of_filters(pid_t pid, pid_t tid) {
  constexpr std::string_view kField = "\nSeccomp_filters:";
  const std::string text = read_proc(pid, fmt::format("task/{}/status", tid));
  const size_t at = text.find(kField);
  if (at == std::string::npos) return {};
  return static_cast<size_t>(std::strtoul(text.c_str() + at + kField.size(), nullptr, 10));
}

const SeccompChain* known_filters(const ProcessRef& process, pid_t tid) {
  const SeccompChain* chain = seccomp_book().find(tid, process.start_time);
  return chain != nullptr && number_of_filters(process.pid, tid) == chain->size() ? chain : nullptr;
}

std::string thread_of(const ProcessRef& process, pid_t tid) {
  return tid == process.pid ? "" : fmt::format("thread {}", tid);
}

// What interrupted calls threads had when their filters were read, until somebody asks.
std::map<pid_t, InterruptedCalls::Call>& interrupted() {
  static std::map<pid_t, InterruptedCalls::Call> calls;
  return calls;
}

void read_filters(const ProcessRef& process) {
  for (auto& [thread, found] : broker().thread_filters(process.pid)) {
    seccomp_book().note(thread, process.start_time, std::move(found.chain));
    if (found.interrupted) interrupted()[thread] = *found.interrupted;
  }
}

void check_strict(const ProcessRef& process, pid_t tid, Findings& findings) {
  seccomp_book().note_strict(tid, process.start_time);
  if (!Tracee::may_suspend_seccomp())
    findings.push_back({process.pid, process.comm, thread_of(process, tid), "is in seccomp's strict mode",
                        "have root take the checkpoint of a job of root's, or run it without"});
}

}  // namespace

void check_seccomp(const ProcessRef& process, pid_t tid, int mode, bool stopped, Findings& findings) {
  const auto refuse = [&](std::string what, bool transient = false) {
    findings.push_back({process.pid, process.comm, thread_of(process, tid), std::move(what), kHint, transient});
  };
  if (mode == 1) return check_strict(process, tid, findings);
  try {
    if (!stopped && known_filters(process, tid) == nullptr) read_filters(process);
    const SeccompChain* chain = known_filters(process, tid);
    if (chain == nullptr)
      return refuse(
          stopped ? "has installed a seccomp filter just now" : "has a seccomp filter, and is installing others", true);
    if (const std::string why = obstacle(*chain, tid == process.pid); !why.empty()) refuse(why);
  } catch (const Error& error) {
    if (stopped || error.kind() == ErrorKind::kGone) throw;
    refuse(fmt::format("has a seccomp filter that cannot be read ({})", error.what()));
  }
}

void suspend_filters(Tracee& thread) {
  if (seccomp_book().knows(thread.tid()) && Tracee::may_suspend_seccomp()) thread.suspend_seccomp();
}

void tell_interrupted_call(pid_t tid, InterruptedCalls& calls) {
  const auto found = interrupted().find(tid);
  if (found == interrupted().end()) return;
  calls.know(tid, found->second);
  interrupted().erase(found);
}

void avoid_restart_call(const SeccompChain& chain, TimeoutPlaces& places, ThreadStart& start) {
  constexpr int64_t kRestartBlock = 516;  // include/linux/errno.h
  const bool restarts =
      static_cast<int64_t>(start.live.orig_rax) >= 0 && start.live.rax == static_cast<uint64_t>(-kRestartBlock);
  if (!restarts || lets_through(seccomp_action(chain, seccomp_call(SYS_restart_syscall, {})))) return;
  make_call_again(places, start.time_left_ns, start.image, start.live);
}

void capture_filters(const std::vector<StoppedProcess>& processes, pb::Capsule& capsule) {
  std::map<const SeccompFilter*, uint32_t> numbers;
  for (size_t i = 0; i < processes.size(); ++i) {
    pb::Process& state = *capsule.mutable_processes(static_cast<int>(i));
    for (size_t thread = 0; thread < processes[i].threads.size(); ++thread) {
      const SeccompChain* chain = seccomp_book().find(processes[i].threads[thread].tid(), processes[i].ref.start_time);
      pb::Thread& saved_thread = *state.mutable_threads(static_cast<int>(thread));
      if (seccomp_book().is_strict(processes[i].threads[thread].tid(), processes[i].ref.start_time))
        saved_thread.set_seccomp_strict(true);
      if (chain == nullptr) continue;
      for (const auto& filter : *chain) {
        const auto [number, is_new] = numbers.try_emplace(filter.get(), static_cast<uint32_t>(numbers.size() + 1));
        saved_thread.add_filters(number->second);
        if (!is_new) continue;
        pb::SeccompFilter& saved = *capsule.add_filters();
        saved.set_id(number->second);
        saved.set_program(filter->program.data(), filter->program.size() * sizeof(sock_filter));
        saved.set_flags(filter->flags);
      }
    }
  }
}

namespace {

std::shared_ptr<const SeccompFilter> filter_of(const pb::Capsule& capsule, uint32_t id, uint32_t tid) {
  for (const pb::SeccompFilter& saved : capsule.filters()) {
    if (saved.id() != id) continue;
    if (saved.program().empty() || saved.program().size() % sizeof(sock_filter) != 0 ||
        saved.program().size() / sizeof(sock_filter) > BPF_MAXINSNS || (saved.flags() & ~kLeastFlags) != 0)
      throw_error(ErrorKind::kImage, "seccomp filter {} of thread {} is none", id, tid);
    auto filter = std::make_shared<SeccompFilter>();
    filter->flags = saved.flags();
    filter->program.resize(saved.program().size() / sizeof(sock_filter));
    std::memcpy(filter->program.data(), saved.program().data(), saved.program().size());
    return filter;
  }
  throw_error(ErrorKind::kImage, "thread {} has seccomp filter {}, which is not in the image", tid, id);
}

void install(RemoteProcess& remote, const SeccompFilter& filter, long by, uint32_t tid, uint32_t more_flags) {
  remote.reset_scratch();
  struct Program {  // struct sock_fprog
    uint64_t length, address;
  };
  const RemoteAddr code = remote.stage(std::as_bytes(std::span(filter.program)));
  const RemoteAddr program = remote.stage_value(Program{filter.program.size(), code.value});
  const int64_t result =
      by == SYS_seccomp
          ? remote.syscall(SYS_seccomp, {SECCOMP_SET_MODE_FILTER, filter.flags | more_flags, program.value})
          : remote.syscall(SYS_prctl, {PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program.value});
  if (result != 0)  // more: the thread that cannot have it (TSYNC)
    throw_error(ErrorKind::kImage, "a seccomp filter of thread {} cannot be installed: {}", tid,
                result < 0 ? errno_text(static_cast<int>(-result)) : "another thread has others");
}

struct Part {
  size_t begin, end;
};

// Filters of a thread by their place among them; those before are there already.
void install_some(RemoteProcess& remote, const pb::Capsule& capsule, const pb::Thread& thread, bool leader, Part part,
                  uint32_t more_flags) {
  const bool suspended = remote.thread().seccomp_suspended();
  SeccompChain chain;
  for (size_t i = 0; i < part.end; ++i) {
    const auto filter = filter_of(capsule, thread.filters(static_cast<int>(i)), thread.tid());
    // prctl(2) knows no flags.
    const auto by = suspended || more_flags != 0 ? std::optional<long>(SYS_seccomp) : installing_call(chain);
    chain.push_back(filter);
    if (i < part.begin) continue;
    const bool ends = !suspended && is_deadly(seccomp_action(chain, seccomp_call(SYS_munmap, {})));
    if (!by || (ends && leader))
      throw_error(ErrorKind::kImage, "seccomp filter {} of thread {} cannot be installed",
                  thread.filters(static_cast<int>(i)), thread.tid());
    install(remote, *filter, *by, thread.tid(), more_flags);
  }
}

}  // namespace

bool has_filters(const pb::Thread& thread) { return thread.seccomp_strict() || thread.filters_size() > 0; }

size_t filters_of_all(const pb::Process& state) {
  if (state.threads_size() < 2) return 0;
  const auto& first = state.threads(0).filters();
  int count = first.size();
  for (const pb::Thread& thread : state.threads()) {
    if (thread.has_credentials()) return 0;  // it would get the main one's no_new_privs
    const auto& own = thread.filters();
    const auto [end, other] = std::mismatch(first.begin(), first.begin() + count, own.begin(), own.end());
    count = static_cast<int>(end - first.begin());
  }
  return static_cast<size_t>(count);
}

void restore_shared_filters(RemoteProcess& leader, const pb::Capsule& capsule, const pb::Process& state, size_t count) {
  install_some(leader, capsule, state.threads(0), true, {0, count}, SECCOMP_FILTER_FLAG_TSYNC);
}

void restore_filters(RemoteProcess& remote, const pb::Capsule& capsule, const pb::Thread& thread, bool leader,
                     size_t shared) {
  const bool suspended = remote.thread().seccomp_suspended();
  install_some(remote, capsule, thread, leader, {shared, static_cast<size_t>(thread.filters_size())}, 0);
  if (!thread.seccomp_strict()) return;
  if (leader && !suspended)
    throw_error(ErrorKind::kRefused, "process {} was in seccomp's strict mode, which only root may restore",
                thread.tid());
  remote.call("prctl(PR_SET_SECCOMP)", SYS_prctl, {PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0});
}

}  // namespace icp
