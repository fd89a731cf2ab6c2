// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/tracee.h"

#include <elf.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/trace/seccomp_book.h"

namespace icp {
namespace {

constexpr size_t kKernelSigsetBytes = 8;
constexpr long kSuspendSeccomp = 1 << 21;  // PTRACE_O_SUSPEND_SECCOMP of linux/ptrace.h

[[noreturn]] void throw_ptrace(pid_t tid, const char* what) {
  const int saved = errno;
  throw Error(saved == ESRCH ? ErrorKind::kGone : ErrorKind::kSystem,
              fmt::format("cannot {} thread {}: {}", what, tid, errno_text(saved)), saved);
}

template <typename Address, typename Data>
long request(int kind, pid_t tid, Address address, Data data) {
  return ::ptrace(static_cast<__ptrace_request>(kind), tid, address, data);
}

constexpr int kQuickLooks = 200;           // a stop comes within microseconds, when the other processor is free
constexpr useconds_t kLookInterval = 100;  // microseconds
constexpr int kLooksForAnEnd = 20'000;     // two seconds: how long a killed thread may take to be gone

// Every wait for a thread has an end: whatever holds it up, the others must not stand still for ever.
using Clock = std::chrono::steady_clock;
constexpr auto kLongestCall = std::chrono::seconds(120);           // a restart's may map gigabytes
constexpr auto kLongestFarewell = std::chrono::milliseconds(500);  // for one that has been waited for in vain
constexpr auto kPatience = std::chrono::seconds(1);                // then the agent's user may break it off

// Threads that did not stop even to be let go. They are, when they do (Tracee::let_go_late).
thread_local std::vector<pid_t> late_threads;

// Signals that ask the agent to end; it blocks them in a version, and takes them after it.
bool asked_to_end() {
  sigset_t pending;
  return ::sigpending(&pending) == 0 && (sigismember(&pending, SIGINT) == 1 || sigismember(&pending, SIGTERM) == 1);
}

// A zombie or nothing; seizing one fails with EPERM, as if another tracer held it.
bool has_ended(pid_t tid) {
  const int saved = errno;
  bool ended = true;
  try {
    const char state = ProcStat::read(tid).state;
    ended = state == 'Z' || state == 'X';
  } catch (const Error&) {
    // No longer there.
  }
  errno = saved;
  return ended;
}

// True when the next event of the thread has come; its status is then in `status`.
bool take_event(pid_t tid, int& status) {
  const pid_t got = ::waitpid(tid, &status, __WALL | WNOHANG);
  if (got < 0 && errno != EINTR) throw_ptrace(tid, "wait for");
  return got == tid;
}

[[noreturn]] void throw_overdue(pid_t tid, Clock::duration waited) {
  char state = '?';
  try {
    state = ProcStat::read(tid).state;
  } catch (const Error&) {
    // Gone now; the sentence is the same.
  }
  throw Error(ErrorKind::kSystem,
              fmt::format("thread {} did not come to a stop within {} seconds (state {})", tid,
                          std::chrono::duration_cast<std::chrono::seconds>(waited).count(), state),
              ETIMEDOUT, "see in /proc/TID/stack what it waits for");
}

// Not a blocking wait: the end of a process's leader is reported only when its other threads have been waited for,
// which is for us, their tracer, to do. A leader found dead is therefore an end, with its status still to come.
int wait_for(pid_t tid, Clock::duration longest) {
  Clock::time_point end{};
  for (int look = 0;; ++look) {
    int status = 0;
    if (take_event(tid, status)) return status;
    if (look < kQuickLooks) {
      ::sched_yield();
      continue;
    }
    if (has_ended(tid)) {
      if (take_event(tid, status)) return status;
      throw_error(ErrorKind::kGone, "thread {} has ended", tid);
    }
    if (end == Clock::time_point{}) end = Clock::now() + longest;
    const Clock::time_point now = Clock::now();
    if (now >= end) throw_overdue(tid, longest);
    if (now - (end - longest) > kPatience && asked_to_end())
      throw_error(ErrorKind::kSystem, "broken off by a signal while thread {} did not come to a stop", tid);
    ::usleep(kLookInterval);
  }
}

bool is_plain_signal_stop(int status) { return (status >> 16) == 0 && WSTOPSIG(status) != (SIGTRAP | 0x80); }

}  // namespace

bool Tracee::is_event_stop(int status) { return (status >> 16) == PTRACE_EVENT_STOP; }
bool Tracee::is_signal_stop(int status, int signal) {
  return is_plain_signal_stop(status) && WSTOPSIG(status) == signal;
}

Tracee Tracee::seize(pid_t tid, bool follow_children) {
  unsigned long options = PTRACE_O_TRACESYSGOOD;
  if (follow_children) options |= PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
  if (request(PTRACE_SEIZE, tid, 0L, options) != 0) {
    if (errno == EPERM && has_ended(tid)) throw_error(ErrorKind::kGone, "thread {} has ended", tid);
    if (errno == EPERM)
      throw Error(ErrorKind::kBusy,
                  fmt::format("cannot seize thread {}: {} (is a debugger attached to it?)", tid, errno_text(EPERM)),
                  EPERM);
    throw_ptrace(tid, "seize");
  }
  return Tracee(tid);
}

Tracee Tracee::adopt(pid_t tid) {
  seccomp_book().forget(tid);
  Tracee tracee(tid);
  tracee.wait_stopped();
  return tracee;
}

Tracee::Tracee(Tracee&& other) noexcept
    : tid_(std::exchange(other.tid_, 0)),
      seccomp_suspended_(other.seccomp_suspended_),
      stopped_(other.stopped_),
      stop_signal_(other.stop_signal_),
      in_call_(other.in_call_),
      settled_(other.settled_),
      overdue_(other.overdue_),
      signals_blocked_(other.signals_blocked_),
      owed_signals_(other.owed_signals_) {}

Tracee& Tracee::operator=(Tracee&& other) noexcept {
  std::swap(tid_, other.tid_);
  std::swap(stopped_, other.stopped_);
  std::swap(stop_signal_, other.stop_signal_);
  std::swap(in_call_, other.in_call_);
  std::swap(seccomp_suspended_, other.seccomp_suspended_);
  std::swap(settled_, other.settled_);
  std::swap(overdue_, other.overdue_);
  std::swap(signals_blocked_, other.signals_blocked_);
  std::swap(owed_signals_, other.owed_signals_);
  return *this;
}

Tracee::~Tracee() {
  if (tid_ == 0) return;
  try {
    if (!stopped_) {  // only a stopped thread can be detached
      overdue_ = true;
      interrupt();
      wait_stopped();
    }
    detach();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kGone)
      forget_ended();  // killed: nothing is left to let go
    else
      late_threads.push_back(std::exchange(tid_, 0));
  }
}

void Tracee::let_go_late() noexcept {
  std::erase_if(late_threads, [](pid_t tid) {
    int status = 0;
    const pid_t got = ::waitpid(tid, &status, __WALL | WNOHANG);
    if (got == 0) return false;
    if (got != tid || !WIFSTOPPED(status)) return true;
    const int signal = is_plain_signal_stop(status) ? WSTOPSIG(status) : 0;
    request(PTRACE_DETACH, tid, 0L, static_cast<long>(signal));
    return true;
  });
}

int Tracee::next_status(Clock::duration longest) {
  // With many of them, the first one's wait was everybody's.
  if (overdue_) longest = late_threads.empty() ? kLongestFarewell : Clock::duration::zero();
  try {
    return wait_for(tid_, longest);
  } catch (const Error& error) {
    overdue_ = overdue_ || error.kind() == ErrorKind::kSystem;
    throw;
  }
}

void Tracee::interrupt() {
  if (request(PTRACE_INTERRUPT, tid_, 0L, 0L) != 0) throw_ptrace(tid_, "interrupt");
}

void Tracee::wait_stopped() {
  for (;;) {
    const int status = next_status(kLongestStop);
    if (!WIFSTOPPED(status)) {
      const pid_t tid = std::exchange(tid_, 0);
      throw_error(ErrorKind::kGone, "thread {} has ended", tid);
    }
    if (is_event_stop(status)) {
      stopped_ = true;
      // SIGTRAP stands for our interrupt (or a new child); anything else is the signal of a group stop.
      stop_signal_ = WSTOPSIG(status) != SIGTRAP ? WSTOPSIG(status) : 0;
      return;
    }
    // A signal was about to be delivered: let it, the interrupt is still pending.
    const int signal = is_plain_signal_stop(status) ? WSTOPSIG(status) : 0;
    if (request(PTRACE_CONT, tid_, 0L, static_cast<long>(signal)) != 0) throw_ptrace(tid_, "continue");
  }
}

user_regs_struct Tracee::regs() const {
  user_regs_struct regs{};
  if (request(PTRACE_GETREGS, tid_, 0L, &regs) != 0) throw_ptrace(tid_, "read the registers of");
  return regs;
}

void Tracee::set_regs(const user_regs_struct& regs) {
  settled_ = false;
  if (request(PTRACE_SETREGS, tid_, 0L, const_cast<user_regs_struct*>(&regs)) != 0)
    throw_ptrace(tid_, "set the registers of");
}

std::vector<std::byte> Tracee::xstate() const {
  // More than any xstate today (AMX: 11 KiB); the kernel says how much it filled.
  std::array<std::byte, 32768> state;
  iovec io{state.data(), state.size()};
  if (request(PTRACE_GETREGSET, tid_, static_cast<long>(NT_X86_XSTATE), &io) != 0)
    throw_ptrace(tid_, "read the extended registers of");
  return {state.begin(), state.begin() + static_cast<ptrdiff_t>(io.iov_len)};
}

void Tracee::set_xstate(std::span<const std::byte> state) {
  iovec io{const_cast<std::byte*>(state.data()), state.size()};
  if (request(PTRACE_SETREGSET, tid_, static_cast<long>(NT_X86_XSTATE), &io) != 0)
    throw_ptrace(tid_, "set the extended registers of");
}

uint64_t Tracee::signal_mask() const {
  uint64_t mask = 0;
  if (request(PTRACE_GETSIGMASK, tid_, kKernelSigsetBytes, &mask) != 0) throw_ptrace(tid_, "read the signal mask of");
  return mask;
}

void Tracee::block_signals() {
  if (signals_blocked_) return;
  set_signal_mask(~0ull);
  signals_blocked_ = true;
}

void Tracee::set_signal_mask(uint64_t mask) {
  signals_blocked_ = settled_ = false;
  if (request(PTRACE_SETSIGMASK, tid_, kKernelSigsetBytes, &mask) != 0) throw_ptrace(tid_, "set the signal mask of");
}

std::vector<siginfo_t> Tracee::pending_signals(bool shared) const {
  std::vector<siginfo_t> all;
  std::array<siginfo_t, 32> batch;
  const uint32_t flags = shared ? static_cast<uint32_t>(PTRACE_PEEKSIGINFO_SHARED) : 0;
  for (;;) {
    const __ptrace_peeksiginfo_args arguments{all.size(), flags, static_cast<int32_t>(batch.size())};
    const long got = request(PTRACE_PEEKSIGINFO, tid_, &arguments, batch.data());
    if (got < 0) throw_ptrace(tid_, "read the pending signals of");
    all.insert(all.end(), batch.begin(), batch.begin() + got);
    if (got < static_cast<long>(batch.size())) return all;
  }
}

void Tracee::start(int kind, int signal) {
  if (request(kind, tid_, 0L, static_cast<long>(signal)) != 0) throw_ptrace(tid_, "continue");
  stopped_ = settled_ = false;
}

int Tracee::await(int kind, Clock::duration longest) {
  for (;;) {
    const int status = next_status(longest);
    if (!WIFSTOPPED(status)) {
      tid_ = 0;
      return status;
    }
    stopped_ = true;
    const bool signal_stop = is_plain_signal_stop(status);
    // get_signal() in the kernel: both lie before its decision about an interrupted system call.
    in_call_ = !signal_stop && !is_event_stop(status);
    // SIGSTOP gets through though all signals are blocked.
    if (!signal_stop || WSTOPSIG(status) != SIGSTOP) return status;
    owe(SIGSTOP);
    start(kind, 0);
  }
}

int Tracee::resume_and_wait(int kind, int signal) {
  start(kind, signal);
  return await(kind, kLongestCall);
}

void Tracee::run_on() { start(PTRACE_CONT, 0); }

int Tracee::await_stop(Clock::duration longest) { return await(PTRACE_CONT, longest); }

bool Tracee::signal_sent_by(pid_t tgid) const {
  siginfo_t info{};
  if (request(PTRACE_GETSIGINFO, tid_, 0L, &info) != 0) throw_ptrace(tid_, "read the signal of");
  return info.si_code == SI_TKILL && info.si_pid == tgid;
}

unsigned long Tracee::event_message() const {
  unsigned long message = 0;
  if (request(PTRACE_GETEVENTMSG, tid_, 0L, &message) != 0) throw_ptrace(tid_, "read the event of");
  return message;
}

void Tracee::restop() {
  interrupt();
  for (;;) {
    const int status = resume_and_wait(PTRACE_CONT);
    if (!WIFSTOPPED(status)) throw_error(ErrorKind::kGone, "a thread has ended while it was stopped");
    if (is_event_stop(status)) return;
  }
}

void Tracee::stop_and_continue() {
  if (::kill(tid_, SIGSTOP) != 0) throw_errno("cannot stop process {}", tid_);
  for (int signal = 0, status = 0; !is_event_stop(status) || WSTOPSIG(status) != SIGSTOP;) {
    start(PTRACE_CONT, signal);
    status = next_status(kLongestStop);
    if (!WIFSTOPPED(status)) throw_error(ErrorKind::kGone, "thread {} has ended", std::exchange(tid_, 0));
    stopped_ = true;
    signal = is_signal_stop(status, SIGSTOP) ? SIGSTOP : 0;
  }
  if (::kill(tid_, SIGCONT) != 0) throw_errno("cannot continue process {}", tid_);
  restop();
}

bool Tracee::may_suspend_seccomp() {
  static const bool able = [] {
    constexpr uint64_t kSysAdmin = 1ull << 21;  // CAP_SYS_ADMIN
    const ProcStatus own = ProcStatus::read(::getpid());
    uint64_t address = 0;  // to be had with CONFIG_CHECKPOINT_RESTORE alone, as the option is
    return (own.cap_eff & kSysAdmin) != 0 && own.seccomp == 0 && ::prctl(PR_GET_TID_ADDRESS, &address, 0, 0, 0) == 0;
  }();
  return able;
}

void Tracee::suspend_seccomp() {
  constexpr long kOptions = PTRACE_O_TRACESYSGOOD | kSuspendSeccomp;
  if (request(PTRACE_SETOPTIONS, tid_, 0L, kOptions) != 0) throw_ptrace(tid_, "put aside the seccomp filters of");
  seccomp_suspended_ = true;
}

void Tracee::forget_ended() noexcept {
  const pid_t tid = std::exchange(tid_, 0);
  for (int look = 0; tid != 0 && look < kLooksForAnEnd; ++look) {
    int status = 0;
    const pid_t got = ::waitpid(tid, &status, __WALL | WNOHANG);
    if (got < 0 || (got == tid && !WIFSTOPPED(status))) return;
    if (got == 0) ::usleep(kLookInterval);
  }
}

void Tracee::detach() {
  if (tid_ == 0) return;
  if (request(PTRACE_DETACH, tid_, 0L, 0L) != 0) throw_ptrace(tid_, "detach from");
  send_owed_signals(std::exchange(tid_, 0));
}

void Tracee::send_owed_signals(pid_t tid) const {
  for (int signal = 1; signal <= 64; ++signal)
    if ((owed_signals_ >> (signal - 1) & 1) != 0) ::kill(tid, signal);
}

}  // namespace icp
