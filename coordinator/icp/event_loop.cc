// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/event_loop.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <array>

#include "engine/base/error.h"

namespace icp {

EventLoop::EventLoop(std::initializer_list<int> signals) {
  sigemptyset(&mask_);
  for (const int signal : signals) {
    struct sigaction action {};
    sigaction(signal, nullptr, &action);
    if (action.sa_handler != SIG_IGN) sigaddset(&mask_, signal);
  }
  if (sigprocmask(SIG_BLOCK, &mask_, &old_mask_) != 0) throw_errno("cannot block signals");
  signals_.reset(signalfd(-1, &mask_, SFD_CLOEXEC | SFD_NONBLOCK));
  timer_.reset(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!signals_ || !timer_) {
    const int saved = errno;
    sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
    errno = saved;
    throw_errno("cannot make a signalfd and a timerfd");
  }
}

EventLoop::~EventLoop() { sigprocmask(SIG_SETMASK, &old_mask_, nullptr); }

void EventLoop::start_timer(std::chrono::milliseconds interval) {
  const timespec value{interval.count() / 1000, interval.count() % 1000 * 1'000'000};
  const itimerspec timer{value, value};
  if (timerfd_settime(timer_.get(), 0, &timer, nullptr) != 0) throw_errno("cannot set the interval's timer");
}

Event EventLoop::wait(int fd, std::chrono::milliseconds timeout) {
  for (;;) {
    std::array<pollfd, 3> polled{{{fd, POLLIN, 0}, {signals_.get(), POLLIN, 0}, {timer_.get(), POLLIN, 0}}};
    const int ready = poll(polled.data(), polled.size(), static_cast<int>(timeout.count()));
    if (ready < 0 && errno != EINTR) throw_errno("cannot wait for events");
    if (ready < 0) continue;
    if (ready == 0) return {Event::kTimeout, 0, false};
    if (polled[0].revents != 0) return {Event::kReady, 0, false};
    signalfd_siginfo info{};
    if (polled[1].revents != 0 && read(signals_.get(), &info, sizeof info) == sizeof info)
      return {Event::kSignal, static_cast<int>(info.ssi_signo), info.ssi_code == SI_KERNEL};
    uint64_t ticks = 0;
    if (polled[2].revents != 0 && read(timer_.get(), &ticks, sizeof ticks) == sizeof ticks)
      return {Event::kTimer, 0, false};
  }
}

}  // namespace icp
