// SPDX-License-Identifier: GPL-2.0-or-later
// The program of `icp run`: started, waited for, its end passed on.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"

namespace icp {

// The program could not be executed; exit_code is 126 or 127 as the shell has it.
class NotExecuted : public Error {
 public:
  NotExecuted(const std::string& command, int error_number);
  int exit_code() const { return error_number() == ENOENT ? 127 : 126; }
};

// A pidfd for signals that cannot hit a later user of the number. Not thread-safe.
class ProcessHandle {
 public:
  explicit ProcessHandle(pid_t pid);    // kGone if there is no such process
  int fd() const { return fd_.get(); }  // readable once the process has ended
  bool running() const;
  void signal(int signal) const noexcept;  // nothing happens if it has ended

 private:
  UniqueFd fd_;
};

// A program and its keeper, a small process between icp and the program. The session traces the program, and a
// tracer that happens to be the parent takes the exit status with waitpid() when the program dies while it is
// stopped; with the keeper as its parent the status is never lost. The keeper ignores what a terminal sends. When
// icp is killed the program runs on, and the keeper with it. It is also the subreaper of the program's descendants, so
// that those who lose their parent are still found.
class Program {
 public:
  // Forks and executes `command` (PATH is searched), with signal mask `mask`, as `user` if given. Returns once
  // the program has been executed; throws NotExecuted, or kSystem.
  static Program start(const std::vector<std::string>& command, const sigset_t& mask,
                       const std::optional<Identity>& user);
  Program(Program&&) noexcept = default;

  pid_t pid() const { return pid_; }
  int event_fd() const { return pipe_.get(); }  // readable once the program has ended
  int take_status();                            // waits for the end; wait(2) status. Once.
  void signal(int signal) const noexcept;
  // Descendants whose parents have ended. Throws kGone if the keeper has ended.
  std::vector<pid_t> orphans() const;

 private:
  Program(UniqueFd pipe, pid_t keeper, pid_t pid);
  UniqueFd pipe_;
  pid_t keeper_ = 0, pid_ = 0;
  std::optional<ProcessHandle> handle_;  // none if the program has ended already
};

// Ends this process as `status` (wait(2)) says: exits with the code, or dies of the signal, without a core of its own.
[[noreturn]] void exit_as(int status);

}  // namespace icp
