// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/timers.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

constexpr uint64_t kNsPerSecond = 1'000'000'000, kUsPerSecond = 1'000'000;
constexpr int kMostTimers = 1024;
constexpr int kMostTimerId = 100'000;  // ids are handed out in sequence: bounds the search for a saved one

uint64_t to_ns(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * kNsPerSecond + static_cast<uint64_t>(time.tv_nsec);
}
timespec from_ns(uint64_t ns) { return {static_cast<time_t>(ns / kNsPerSecond), static_cast<long>(ns % kNsPerSecond)}; }
uint64_t to_us(const timeval& time) {
  return static_cast<uint64_t>(time.tv_sec) * kUsPerSecond + static_cast<uint64_t>(time.tv_usec);
}
timeval from_us(uint64_t us) {
  return {static_cast<time_t>(us / kUsPerSecond), static_cast<suseconds_t>(us % kUsPerSecond)};
}

// One block of /proc/PID/timers (proc(5)):
//   ID: 1
//   signal: 60/00007fff86e452a8
//   notify: signal/pid.2634
//   ClockID: 0
std::vector<pb::PosixTimer> read_posix_timers(pid_t pid) {
  std::vector<pb::PosixTimer> timers;
  std::istringstream lines(read_proc(pid, "timers"));
  for (std::string line; std::getline(lines, line);) {
    int number = 0, target = 0;
    unsigned long long value = 0;
    char kind[16] = "", scope[8] = "";
    if (std::sscanf(line.c_str(), "ID: %d", &number) == 1) {
      timers.emplace_back().set_id(number);
    } else if (timers.empty()) {
      continue;
    } else if (std::sscanf(line.c_str(), "signal: %d/%llx", &number, &value) == 2) {
      timers.back().set_signal(number);
      timers.back().set_value(value);
    } else if (std::sscanf(line.c_str(), "notify: %15[a-z]/%7[a-z].%d", kind, scope, &target) == 3) {
      const std::string_view how = kind;
      int notify = how == "none" ? SIGEV_NONE : how == "thread" ? SIGEV_THREAD : SIGEV_SIGNAL;
      if (std::string_view(scope) == "tid") {
        notify |= SIGEV_THREAD_ID;
        timers.back().set_notify_tid(static_cast<uint32_t>(target));
      }
      timers.back().set_notify(notify);
    } else if (std::sscanf(line.c_str(), "ClockID: %d", &number) == 1) {
      timers.back().set_clock(number);
    }
  }
  return timers;
}

// Since Linux 6.15 a timer can be made with a given id. In the calling process.
constexpr uint64_t kRestoreIds = 77, kRestoreIdsOff = 0, kRestoreIdsOn = 1, kRestoreIdsGet = 2;  // PR_TIMER_CREATE_...
bool can_restore_ids() { return ::prctl(kRestoreIds, kRestoreIdsGet, 0, 0, 0) >= 0; }

class TimerMaker {
 public:
  explicit TimerMaker(RemoteProcess& remote)
      : remote_(remote), by_id_(remote.syscall(SYS_prctl, {kRestoreIds, kRestoreIdsOn, 0, 0, 0}) == 0) {}
  ~TimerMaker() {
    try {
      if (by_id_) remote_.syscall(SYS_prctl, {kRestoreIds, kRestoreIdsOff, 0, 0, 0});
    } catch (const Error&) {
      // It has been killed.
    }
  }
  TimerMaker(const TimerMaker&) = delete;
  TimerMaker& operator=(const TimerMaker&) = delete;

  // A negative clock id names the CPU time of a process or thread by number; the process's own is rebuilt as such.
  void make(const pb::PosixTimer& timer) {
    if (timer.id() < 0 || (!by_id_ && timer.id() > kMostTimerId))
      throw_error(ErrorKind::kImage, "POSIX timer id {} is out of range", timer.id());
    for (int made = -1; made != timer.id();) {
      made = make_one(timer);
      if (made > timer.id())
        throw_error(ErrorKind::kImage, "POSIX timer id {} cannot be had again (the next one is {})", timer.id(), made);
      if (made != timer.id()) remote_.call("timer_delete", SYS_timer_delete, {static_cast<uint64_t>(made)});
    }
  }

 private:
  int make_one(const pb::PosixTimer& timer) {
    sigevent event{};
    event.sigev_notify = timer.notify();
    event.sigev_signo = timer.signal();
    event.sigev_value.sival_ptr = reinterpret_cast<void*>(timer.value());
    event._sigev_un._tid = static_cast<pid_t>(timer.notify_tid());
    remote_.reset_scratch();
    const RemoteAddr event_at = remote_.stage_value(event);
    const RemoteAddr id_at = remote_.stage_value(by_id_ ? timer.id() : -1);
    remote_.call("timer_create", SYS_timer_create,
                 {static_cast<uint64_t>(static_cast<int64_t>(timer.clock())), event_at.value, id_at.value});
    return remote_.read_value<int>(id_at);
  }

  RemoteProcess& remote_;
  const bool by_id_;
};

// One that has expired, with its signal pending: it is to expire at once, and a periodic one then in step.
void set_expired(RemoteProcess& remote, const pb::PosixTimer& timer) {
  itimerspec time{from_ns(timer.interval_ns()), from_ns(1)};
  int flags = 0;
  timespec now{};
  const bool wall =
      timer.clock() >= 0 && timer.clock() != CLOCK_PROCESS_CPUTIME_ID && timer.clock() != CLOCK_THREAD_CPUTIME_ID;
  if (wall && ::clock_gettime(timer.clock(), &now) == 0 && to_ns(now) + timer.remaining_ns() > timer.interval_ns()) {
    time.it_value = from_ns(std::max<uint64_t>(to_ns(now) + timer.remaining_ns() - timer.interval_ns(), 1));
    flags = TIMER_ABSTIME;
  }
  remote.reset_scratch();
  remote.call("timer_settime", SYS_timer_settime,
              {static_cast<uint64_t>(timer.id()), static_cast<uint64_t>(flags), remote.stage_value(time).value, 0});
}

// It can send its signal by expiring.
bool can_expire(const pb::PosixTimer& timer) { return timer.interval_ns() != 0 || timer.remaining_ns() == 0; }

bool has_expired(const pb::Process& state, const pb::PosixTimer& timer) {
  const auto any = [&](const auto& pending) {
    return std::any_of(pending.begin(), pending.end(), [&](const std::string& bytes) {
      siginfo_t info{};
      std::memcpy(&info, bytes.data(), std::min(bytes.size(), sizeof info));
      return info.si_timerid == timer.id() && sent_by_timer(state, info);
    });
  };
  return any(state.signals().pending()) || std::any_of(state.threads().begin(), state.threads().end(),
                                                       [&](const pb::Thread& thread) { return any(thread.pending()); });
}

}  // namespace

void capture_timers(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  for (const int which : {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}) {
    calls.ask<itimerval>("getitimer", SYS_getitimer, {static_cast<uint64_t>(which), CallBatch::kAnswer},
                         [&state, which](const itimerval& timer) {
                           if (to_us(timer.it_value) == 0) return;
                           pb::IntervalTimer& saved = *state.add_itimers();
                           saved.set_which(static_cast<uint32_t>(which));
                           saved.set_interval_us(to_us(timer.it_interval));
                           saved.set_value_us(to_us(timer.it_value));
                         });
  }
  for (const pb::PosixTimer& timer : read_posix_timers(process.ref.pid)) {
    pb::PosixTimer& saved = *state.add_posix_timers();
    saved = timer;
    calls.ask<itimerspec>("timer_gettime", SYS_timer_gettime, {static_cast<uint64_t>(timer.id()), CallBatch::kAnswer},
                          [&saved](const itimerspec& time) {
                            saved.set_interval_ns(to_ns(time.it_interval));
                            saved.set_remaining_ns(to_ns(time.it_value));
                          });
  }
}

void check_timers(const ProcessRef& process, Findings& findings) {
  if (can_restore_ids()) return;
  for (const pb::PosixTimer& timer : read_posix_timers(process.pid)) {
    if (timer.id() <= kMostTimerId) continue;
    findings.push_back({process.pid, process.comm, "",
                        fmt::format("has a POSIX timer of id {}, which this kernel cannot make again", timer.id()),
                        "restart it from time to time, keep its timers, or use Linux 6.15 or newer"});
    return;
  }
}

bool sent_by_timer(const pb::Process& state, const siginfo_t& info) {
  return info.si_code == SI_TIMER &&
         std::any_of(state.posix_timers().begin(), state.posix_timers().end(), [&](const pb::PosixTimer& timer) {
           return timer.id() == info.si_timerid && timer.signal() == info.si_signo && can_expire(timer);
         });
}

void name_timer_threads(const StoppedProcess& process, pb::Process& state) {
  for (pb::PosixTimer& timer : *state.mutable_posix_timers()) {
    for (size_t i = 0; timer.notify_tid() != 0 && i < process.threads.size(); ++i) {
      if (static_cast<uint32_t>(process.threads[i].tid()) != timer.notify_tid()) continue;
      timer.set_notify_tid(state.threads(static_cast<int>(i)).tid());
      break;
    }
  }
}

void restore_timers(RemoteProcess& remote, const pb::Process& state) {
  for (const pb::IntervalTimer& saved : state.itimers()) {
    remote.reset_scratch();
    const itimerval timer{from_us(saved.interval_us()), from_us(saved.value_us())};
    remote.call("setitimer", SYS_setitimer, {saved.which(), remote.stage_value(timer).value, 0});
  }
  if (state.posix_timers_size() > kMostTimers)
    throw_error(ErrorKind::kImage, "process {} has {} POSIX timers", state.pid(), state.posix_timers_size());
  // Ids are handed out upwards; the kernel lists the newest first, which is how images have them.
  std::vector<pb::PosixTimer> timers(state.posix_timers().begin(), state.posix_timers().end());
  std::sort(timers.begin(), timers.end(), [](const auto& one, const auto& other) { return one.id() < other.id(); });
  if (timers.empty()) return;
  TimerMaker maker(remote);
  for (const pb::PosixTimer& timer : timers) {
    maker.make(timer);
    if (has_expired(state, timer)) {
      set_expired(remote, timer);
      continue;
    }
    if (timer.remaining_ns() == 0) continue;
    remote.reset_scratch();
    const itimerspec time{from_ns(timer.interval_ns()), from_ns(timer.remaining_ns())};
    remote.call("timer_settime", SYS_timer_settime,
                {static_cast<uint64_t>(timer.id()), 0, remote.stage_value(time).value, 0});
  }
}

}  // namespace icp
