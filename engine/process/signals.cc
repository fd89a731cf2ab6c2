// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/signals.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/process/timers.h"

namespace icp {
namespace {

constexpr uint32_t kSignals = 64;
constexpr uint64_t kKernelSigsetBytes = 8;
constexpr int kStopTries = 2000;
constexpr std::chrono::milliseconds kStopWait{1};
constexpr int kMostPending = 65536;  // beyond any RLIMIT_SIGPENDING seen; bounds hostile images

// struct sigaction as the kernel has it (arch/x86/include/asm/signal.h).
struct KernelSigaction {
  uint64_t handler, flags, restorer, mask;
};

constexpr uint64_t bit_of(int signal) { return 1ull << (signal - 1); }

// Those whose default action does not end a process.
constexpr uint64_t kHarmless = bit_of(SIGCHLD) | bit_of(SIGURG) | bit_of(SIGWINCH) | bit_of(SIGCONT) | bit_of(SIGSTOP) |
                               bit_of(SIGTSTP) | bit_of(SIGTTIN) | bit_of(SIGTTOU);

// A signal that came during the stop and ends the process as soon as it runs on, as scancel's or a time limit's
// SIGTERM: a version of it would be restored into its death. A process in a job-control stop keeps its signals until
// SIGCONT.
void refuse_dying(const StoppedProcess& process, const ProcStatus& status) {
  if (process.job_stopped != 0) return;
  const uint64_t deadly = ~(status.sig_caught | status.sig_ignored | kHarmless);
  const auto look = [&](const std::vector<siginfo_t>& pending, uint64_t blocked) {
    for (const siginfo_t& info : pending) {
      if (info.si_signo < 1 || info.si_signo > static_cast<int>(kSignals)) continue;
      if ((bit_of(info.si_signo) & deadly & ~blocked) == 0) continue;
      throw_error(ErrorKind::kGone, "process {} ({}) is being ended by signal {}", process.ref.pid, process.ref.comm,
                  info.si_signo);
    }
  };
  uint64_t blocked_by_all = ~0ull;
  for (size_t i = 0; i < process.threads.size(); ++i) {
    look(process.threads[i].pending_signals(false), process.starts[i].signal_mask);
    blocked_by_all &= process.starts[i].signal_mask;
  }
  look(process.threads[0].pending_signals(true), blocked_by_all);
}

siginfo_t checked_siginfo(const std::string& bytes) {
  siginfo_t info;
  if (bytes.size() != sizeof info) throw_error(ErrorKind::kImage, "a pending signal has {} bytes", bytes.size());
  std::memcpy(&info, bytes.data(), sizeof info);
  if (info.si_signo < 1 || info.si_signo > static_cast<int>(kSignals) || info.si_signo == SIGKILL)
    throw_error(ErrorKind::kImage, "signal {} cannot be pending", info.si_signo);
  return info;
}

}  // namespace

bool note_stop(const siginfo_t& info, pb::Process& state) {
  if (info.si_signo != SIGSTOP) return false;
  state.set_state(pb::Process::STOPPED);
  return true;
}

void capture_signals(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  const ProcStatus& status = process.status;
  refuse_dying(process, status);
  pb::Signals& signals = *state.mutable_signals();
  for (uint32_t signal = 1; signal <= kSignals; ++signal) {
    const uint64_t bit = 1ull << (signal - 1);
    // Default ones have no handler; SIGCHLD's flags (SA_NOCLDWAIT) count even then.
    if (((status.sig_caught | status.sig_ignored) & bit) == 0 && signal != SIGCHLD) continue;
    calls.ask<KernelSigaction>("rt_sigaction", SYS_rt_sigaction, {signal, 0, CallBatch::kAnswer, kKernelSigsetBytes},
                               [&signals, signal](const KernelSigaction& action) {
                                 if (action.handler == 0 && action.flags == 0) return;
                                 pb::SignalAction& saved = *signals.add_actions();
                                 saved.set_signal(signal);
                                 saved.set_handler(action.handler);
                                 saved.set_flags(action.flags);
                                 saved.set_restorer(action.restorer);
                                 saved.set_mask(action.mask);
                               });
  }
  for (const siginfo_t& info : process.threads[0].pending_signals(true))
    if (!note_stop(info, state)) signals.add_pending(&info, sizeof info);
}

int find_quiet_signal(const ProcStatus& status, uint64_t pending) {
  const auto bit = [](int signal) { return 1ull << (signal - 1); };
  for (const int signal : {SIGWINCH, SIGURG, SIGCHLD}) {
    if (((status.sig_caught | pending) & bit(signal)) == 0) return signal;
  }
  for (int signal = 1; signal <= static_cast<int>(kSignals); ++signal) {
    const bool job_control = signal == SIGCONT || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
    if (!job_control && (status.sig_ignored & ~pending & bit(signal)) != 0) return signal;
  }
  return 0;
}

void restore_signal_actions(RemoteProcess& remote, const pb::Process& state) {
  for (const pb::SignalAction& saved : state.signals().actions()) {
    if (saved.signal() < 1 || saved.signal() > kSignals || saved.signal() == SIGKILL || saved.signal() == SIGSTOP)
      throw_error(ErrorKind::kImage, "process {} has a handler for signal {}", state.pid(), saved.signal());
    remote.reset_scratch();
    const KernelSigaction action{saved.handler(), saved.flags(), saved.restorer(), saved.mask()};
    remote.call("rt_sigaction", SYS_rt_sigaction,
                {saved.signal(), remote.stage_value(action).value, 0, kKernelSigsetBytes});
  }
}

void restore_process_signals(RemoteProcess& remote, const pb::Process& state) {
  remote.reset_scratch();
  const RemoteAddr child_mask = remote.stage_value(1ull << (SIGCHLD - 1));
  const RemoteAddr no_time = remote.stage_value(timespec{});
  while (remote.syscall(SYS_rt_sigtimedwait, {child_mask.value, 0, no_time.value, kKernelSigsetBytes}) > 0) {
  }
  if (state.signals().pending_size() > kMostPending)
    throw_error(ErrorKind::kImage, "process {} has {} pending signals", state.pid(), state.signals().pending_size());
  for (const std::string& bytes : state.signals().pending()) {
    const siginfo_t info = checked_siginfo(bytes);
    if (info.si_signo == SIGSTOP) continue;  // images of earlier releases: the process is stopped anyway
    if (sent_by_timer(state, info)) continue;
    remote.reset_scratch();
    // A process may queue any siginfo to itself, whatever its si_code.
    remote.call("rt_sigqueueinfo", SYS_rt_sigqueueinfo,
                {state.pid(), static_cast<uint64_t>(info.si_signo), remote.stage_value(info).value});
  }
}

namespace {

// As the kernel's will_become_orphaned_pgrp(): nobody in the group has a parent in another group of the session.
bool is_orphaned_group(const pb::Process& member, const pb::Capsule& capsule) {
  std::map<uint32_t, const pb::Process*> processes;
  for (const pb::Process& process : capsule.processes()) processes.emplace(process.pid(), &process);
  return std::none_of(capsule.processes().begin(), capsule.processes().end(), [&](const pb::Process& process) {
    if (process.pgid() != member.pgid() || process.state() == pb::Process::ZOMBIE) return false;
    const auto parent = processes.find(process.ppid());
    return parent != processes.end() && parent->second->pgid() != process.pgid() &&
           parent->second->sid() == process.sid();
  });
}

}  // namespace

int stop_signal_of(const pb::Process& state, const pb::Capsule& capsule) {
  const int signal = state.stop_signal();
  if (signal != SIGTSTP && signal != SIGTTIN && signal != SIGTTOU) return SIGSTOP;
  const auto acts = [signal](const pb::SignalAction& action) {
    return action.signal() == static_cast<uint32_t>(signal) && action.handler() != 0;
  };
  const auto blocks = [signal](const pb::Thread& thread) { return (thread.signal_mask() & bit_of(signal)) != 0; };
  const bool arrives = std::none_of(state.signals().actions().begin(), state.signals().actions().end(), acts) &&
                       !std::all_of(state.threads().begin(), state.threads().end(), blocks);
  return arrives && !is_orphaned_group(state, capsule) ? signal : SIGSTOP;
}

void take_stop_of_child(RemoteProcess& parent, uint32_t child, const std::function<void()>& stop) {
  parent.reset_scratch();
  const RemoteAddr saved = parent.stage_value(KernelSigaction{});
  parent.call("rt_sigaction", SYS_rt_sigaction, {SIGCHLD, 0, saved.value, kKernelSigsetBytes});
  KernelSigaction silent = parent.read_value<KernelSigaction>(saved);
  silent.flags |= SA_NOCLDSTOP;
  const RemoteAddr at = parent.stage_value(silent), info = parent.stage_value(siginfo_t{});
  parent.call("rt_sigaction", SYS_rt_sigaction, {SIGCHLD, at.value, 0, kKernelSigsetBytes});
  stop();
  siginfo_t told{};
  for (int tries = 0; told.si_pid == 0 && tries < kStopTries; ++tries) {
    if (tries > 0) std::this_thread::sleep_for(kStopWait);
    parent.call("waitid", SYS_waitid,
                {P_PID, child, info.value, WSTOPPED | WNOHANG | static_cast<uint64_t>(__WALL), 0});
    told = parent.read_value<siginfo_t>(info);
  }
  parent.call("rt_sigaction", SYS_rt_sigaction, {SIGCHLD, saved.value, 0, kKernelSigsetBytes});
}

void restore_thread_signals(RemoteProcess& remote, const pb::Process& state, const pb::Thread& thread) {
  if (thread.pending_size() > kMostPending)
    throw_error(ErrorKind::kImage, "thread {} has {} pending signals", thread.tid(), thread.pending_size());
  for (const std::string& bytes : thread.pending()) {
    const siginfo_t info = checked_siginfo(bytes);
    if (info.si_signo == SIGSTOP || sent_by_timer(state, info)) continue;
    remote.reset_scratch();
    remote.call("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo,
                {state.pid(), thread.tid(), static_cast<uint64_t>(info.si_signo), remote.stage_value(info).value});
  }
}

}  // namespace icp
