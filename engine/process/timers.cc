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

bool is_wall_clock(int clock) {
  return clock >= 0 && clock != CLOCK_PROCESS_CPUTIME_ID && clock != CLOCK_THREAD_CPUTIME_ID;
}

void set_timer(RemoteProcess& remote, const pb::PosixTimer& timer, const itimerspec& time, int flags = 0) {
  remote.reset_scratch();
  remote.call("timer_settime", SYS_timer_settime,
              {static_cast<uint64_t>(timer.id()), static_cast<uint64_t>(flags), remote.stage_value(time).value, 0});
}

// Starts a periodic timer in step, so many of its intervals before the next expiry, which is in the past; fewer if the
// clock does not go back that far. False if it goes back for none of them, or cannot be set like that.
bool start_in_the_past(RemoteProcess& remote, const pb::PosixTimer& timer, uint64_t intervals) {
  timespec now{};
  if (!is_wall_clock(timer.clock()) || timer.interval_ns() == 0 || ::clock_gettime(timer.clock(), &now) != 0)
    return false;
  const uint64_t next = to_ns(now) + timer.remaining_ns();
  intervals = std::min(intervals, (next - 1) / timer.interval_ns());
  if (intervals == 0) return false;
  set_timer(remote, timer, {from_ns(timer.interval_ns()), from_ns(next - intervals * timer.interval_ns())},
            TIMER_ABSTIME);
  return true;
}

// One that has expired, with its signal pending: it is to expire at once, and a periodic one then in step.
void set_expired(RemoteProcess& remote, const pb::PosixTimer& timer) {
  if (!start_in_the_past(remote, timer, 1)) set_timer(remote, timer, {from_ns(timer.interval_ns()), from_ns(1)});
}

// What timer_getoverrun() tells is counted when a signal of the timer's is taken: one is sent late, and taken here.
// `thread`: the one that gets it, if it goes to one. False: its overruns cannot come back.
bool set_overrun(RemoteProcess& thread, const pb::PosixTimer& timer) {
  const bool sends = (timer.notify() & ~SIGEV_THREAD_ID) == SIGEV_SIGNAL && timer.signal() >= 1 && timer.signal() <= 64;
  if (timer.overrun() <= 0 || !sends) return false;
  if (!start_in_the_past(thread, timer, static_cast<uint64_t>(timer.overrun()) + 1)) return false;
  thread.reset_scratch();
  const RemoteAddr mask = thread.stage_value(1ull << (timer.signal() - 1)),
                   longest = thread.stage_value(timespec{1, 0});
  thread.syscall(SYS_rt_sigtimedwait, {mask.value, 0, longest.value, sizeof(uint64_t)});
  return true;
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
    calls.call(nullptr, SYS_timer_getoverrun, {static_cast<uint64_t>(timer.id())},
               [&saved](int64_t count) { saved.set_overrun(static_cast<int32_t>(std::max<int64_t>(count, 0))); });
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

void restore_timers(RemoteProcess& remote, const pb::Process& state,
                    const std::function<RemoteProcess(uint32_t tid)>& in_thread) {
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
  for (const pb::PosixTimer& timer : timers) maker.make(timer);
  // These wait for signals, of which there are none yet.
  std::erase_if(timers, [&](const pb::PosixTimer& timer) {
    if (timer.remaining_ns() == 0 || has_expired(state, timer)) return false;
    RemoteProcess thread = timer.notify_tid() == 0 ? remote.on_thread(remote.thread()) : in_thread(timer.notify_tid());
    return set_overrun(thread, timer);
  });
  for (const pb::PosixTimer& timer : timers) {
    if (has_expired(state, timer)) {
      set_expired(remote, timer);
    } else if (timer.remaining_ns() != 0) {
      set_timer(remote, timer, {from_ns(timer.interval_ns()), from_ns(timer.remaining_ns())});
    }
  }
}

}  // namespace icp
