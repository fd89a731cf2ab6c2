// SPDX-License-Identifier: GPL-2.0-or-later
// What a command of icp waits for: signals, its interval, and one descriptor. No threads: ptrace belongs to the
// thread that made the session, and that is the one that waits here.
#pragma once

#include <chrono>
#include <csignal>
#include <initializer_list>

#include "engine/base/unique_fd.h"

namespace icp {

struct Event {
  enum Kind { kSignal, kTimer, kReady, kTimeout };
  Kind kind = kSignal;
  int signal = 0;            // kSignal
  bool from_kernel = false;  // kSignal: not sent by a process; a key on the terminal reaches its whole process group
};

// Not thread-safe. One at a time: it changes the process's signal mask and puts it back in the destructor.
class EventLoop {
 public:
  // Blocks `signals` and takes them from wait() from now on; but for those that are ignored (nohup), which stay so.
  explicit EventLoop(std::initializer_list<int> signals);
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // The mask before, for a child to be started.
  const sigset_t& old_mask() const { return old_mask_; }
  // The first tick comes one interval from now. Ticks that were missed meanwhile are one.
  void start_timer(std::chrono::milliseconds interval);
  // Waits. `fd` (or -1) is ready when readable or at its end; it goes first, then signals, then the timer. A negative
  // timeout is none.
  Event wait(int fd, std::chrono::milliseconds timeout = std::chrono::milliseconds(-1));

 private:
  sigset_t mask_{}, old_mask_{};
  UniqueFd signals_, timer_;
};

}  // namespace icp
