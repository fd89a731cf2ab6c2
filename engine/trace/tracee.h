// SPDX-License-Identifier: GPL-2.0-or-later
// One thread of another process, held by ptrace.
#pragma once

#include <signal.h>
#include <sys/types.h>
#include <sys/user.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace icp {

// A thread that this agent has seized (PTRACE_SEIZE). All members but the destructor throw Error; kGone
// when the thread has been killed meanwhile (SIGKILL ends a stopped thread too).
//
// If the agent dies, the kernel detaches every thread and lets it run on from the registers it has at
// that moment; RemoteProcess keeps the time short in which those are not the thread's own.
//
// Every wait has an end: kSystem with ETIMEDOUT when the thread does not come to a stop, whatever holds it up (a file
// server that is away), or when the agent has been asked to end (SIGINT, SIGTERM) after a second of waiting.
//
// ptrace belongs to one thread of the agent: use a Tracee from the thread that made it.
class Tracee {
 public:
  // Seizes a running thread without stopping it. kBusy if another tracer (a debugger) holds it. With
  // `follow_children`, threads and processes it makes are attached as well (see adopt).
  static Tracee seize(pid_t tid, bool follow_children = false);
  // Takes over a thread that the kernel attached by itself (PTRACE_O_TRACECLONE ...). It is about to
  // stop; waits until it has.
  static Tracee adopt(pid_t tid);

  Tracee(Tracee&&) noexcept;
  Tracee& operator=(Tracee&&) noexcept;
  // Detaches and lets the thread run, unless released or gone.
  ~Tracee();
  // Lets those go that did not stop in time for their destructor, and have since. To be called now and then.
  static void let_go_late() noexcept;

  static constexpr auto kLongestStop = std::chrono::seconds(20);  // a wait for a disk, the exec of a vfork

  pid_t tid() const { return tid_; }

  // Asks the thread to stop (PTRACE_INTERRUPT); returns at once.
  void interrupt();
  // Waits until it has stopped. A signal on its way is delivered first, as it would have been without us. Remembers
  // a group stop (SIGSTOP, SIGTSTP) as job_stopped().
  void wait_stopped();
  bool job_stopped() const { return stop_signal_ != 0; }
  int stop_signal() const { return stop_signal_; }  // 0: no group stop

  user_regs_struct regs() const;
  void set_regs(const user_regs_struct& regs);
  // NT_X86_XSTATE, standard layout.
  std::vector<std::byte> xstate() const;
  void set_xstate(std::span<const std::byte> state);
  uint64_t signal_mask() const;
  void set_signal_mask(uint64_t mask);
  // Blocks all signals, once: a remote call must not run into a handler. set_signal_mask() ends it.
  void block_signals();
  // Signals queued for the thread (or, with `shared`, for its process), oldest first; they stay queued.
  std::vector<siginfo_t> pending_signals(bool shared) const;

  // Runs until the next ptrace stop; returns the wait(2) status. `request` is PTRACE_CONT or PTRACE_SYSCALL.
  int resume_and_wait(int request, int signal = 0);
  // The same in two steps, so that several threads run side by side: lets it run (PTRACE_CONT), waits for its stop.
  void run_on();
  int await_stop(std::chrono::steady_clock::duration longest = kLongestStop);
  // What a status of these stands for: a signal about to be delivered; an interrupt, or the job control's.
  static bool is_signal_stop(int status, int signal);
  static bool is_event_stop(int status);
  // At the delivery of a signal: whether a thread of process `tgid` (its own number for itself) sent it by tgkill(2).
  bool signal_sent_by(pid_t tgid) const;
  // A signal to the process that was met and not delivered: it is sent again when the thread is let go.
  void owe(int signal) { owed_signals_ |= 1ull << (signal - 1); }
  // Data of the last event stop (a new pid).
  unsigned long event_message() const;
  // Brings a thread back into the stop where the kernel decides about restarting an interrupted system
  // call, so that registers set now behave as at the first stop.
  void restop();

  // Stops its process by SIGSTOP and continues it by SIGCONT, which stays pending where it is blocked: from then on the
  // parent may wait for that (WCONTINUED). For a process of one thread; it is stopped for us afterwards, as before.
  void stop_and_continue();

  // Its seccomp filters, and strict mode, are put aside until it is let go (PTRACE_O_SUSPEND_SECCOMP); also for those
  // it gets meanwhile. Takes CAP_SYS_ADMIN, and no filter of our own. Should the agent die, they hold at once. Its
  // children are not followed from then on.
  static bool may_suspend_seccomp();
  void suspend_seccomp();
  bool seccomp_suspended() const { return seccomp_suspended_; }

  // Lets the thread go on.
  void detach();
  // True when the thread has been stopped and not run since.
  bool stopped() const { return stopped_; }
  // True from here on until the thread runs again: what settled it needs not be done twice.
  void set_settled() { settled_ = true; }
  bool settled() const { return settled_; }
  // True in a stop at a system call of ours, where registers set now would not be taken for those of an interrupted
  // call: restop() first.
  bool in_call() const { return in_call_; }
  // For a thread that has been sent SIGKILL: waits for its end and forgets it.
  void forget_ended() noexcept;

 private:
  explicit Tracee(pid_t tid) : tid_(tid) {}
  void start(int request, int signal);
  int await(int request, std::chrono::steady_clock::duration longest);
  int next_status(std::chrono::steady_clock::duration longest);
  void send_owed_signals(pid_t tid) const;

  pid_t tid_ = 0;
  bool seccomp_suspended_ = false;
  bool stopped_ = false;
  int stop_signal_ = 0;
  bool in_call_ = false;
  bool settled_ = false;
  bool overdue_ = false;  // has been waited for in vain: not so long again
  bool signals_blocked_ = false;
  uint64_t owed_signals_ = 0;  // met during remote calls, sent again at detach: SIGSTOP is never blocked
};

}  // namespace icp
