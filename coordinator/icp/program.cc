// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/program.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "coordinator/icp/users.h"
#include "engine/base/procfs.h"

namespace icp {

namespace {

struct Pipe {
  UniqueFd read_end, write_end;
};

Pipe make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw_errno("cannot make a pipe");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// What the keeper tells icp, in this order: one of the first two, then the last.
struct KeeperMessage {
  enum Kind : int { kNotExecuted, kStarted, kEnded };
  Kind kind = kNotExecuted;
  int value = 0;  // errno, pid, wait(2) status
};

// False at the end of the pipe.
bool receive(int fd, KeeperMessage& message) {
  ssize_t got = 0;
  while ((got = read(fd, &message, sizeof message)) < 0 && errno == EINTR) {
  }
  return got == sizeof message;
}

void send(int fd, KeeperMessage message) {
  while (write(fd, &message, sizeof message) < 0 && errno == EINTR) {
  }
}

[[noreturn]] void execute(const std::vector<std::string>& command, const sigset_t& mask, int failure_fd) {
  int code = 0;
  try {
    std::vector<char*> arguments;
    arguments.reserve(command.size() + 1);
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    std::signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &mask, nullptr);
    execvp(arguments[0], arguments.data());
    code = errno;
  } catch (const Error& error) {
    code = error.error_number();
  }
  while (write(failure_fd, &code, sizeof code) < 0 && errno == EINTR) {
  }
  _exit(127);
}

[[noreturn]] void keep(const std::vector<std::string>& command, const sigset_t& mask,
                       const std::optional<Identity>& user, int report_fd) {
  if (user) become(*user);  // the keeper's rights are no one else's either
  prctl(PR_SET_NAME, "icp-keeper");
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, nullptr);

  Pipe failure = make_pipe();
  const pid_t pid = fork();
  if (pid == 0) execute(command, mask, failure.write_end.get());
  failure.write_end.reset();
  int code = pid < 0 ? errno : 0;
  if (code == 0 && read(failure.read_end.get(), &code, sizeof code) != sizeof code) code = 0;  // closed by the exec
  send(report_fd,
       code != 0 ? KeeperMessage{KeeperMessage::kNotExecuted, code} : KeeperMessage{KeeperMessage::kStarted, pid});

  // Whoever waits for the other end of these should not have to wait for the keeper.
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd = 0; fd < 3; ++fd) dup2(null.get(), fd);
  int status = 0;
  for (pid_t ended = 0; ended != pid && (ended >= 0 || errno == EINTR);) ended = waitpid(-1, &status, 0);
  send(report_fd, {KeeperMessage::kEnded, status});
  _exit(0);
}

}  // namespace

NotExecuted::NotExecuted(const std::string& command, int error_number)
    : Error(ErrorKind::kSystem, fmt::format("cannot execute {}: {}", command, errno_text(error_number)), error_number) {
}

ProcessHandle::ProcessHandle(pid_t pid) : fd_(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))) {
  if (fd_) return;
  if (errno == ESRCH) throw Error(ErrorKind::kGone, fmt::format("there is no process {}", pid), ESRCH);
  throw_errno("cannot open process {}", pid);
}

bool ProcessHandle::running() const {
  pollfd polled{fd_.get(), POLLIN, 0};
  return poll(&polled, 1, 0) == 0;
}

void ProcessHandle::signal(int signal) const noexcept { syscall(SYS_pidfd_send_signal, fd_.get(), signal, nullptr, 0); }

Program::Program(UniqueFd pipe, pid_t keeper, pid_t pid) : pipe_(std::move(pipe)), keeper_(keeper), pid_(pid) {
  try {
    handle_.emplace(pid);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;
  }
}

Program Program::start(const std::vector<std::string>& command, const sigset_t& mask,
                       const std::optional<Identity>& user) {
  Pipe report = make_pipe();
  const pid_t keeper = fork();
  if (keeper < 0) throw_errno("cannot start a process");
  if (keeper == 0) {
    report.read_end.reset();
    try {
      keep(command, mask, user, report.write_end.get());
    } catch (const Error& error) {
      send(report.write_end.get(), {KeeperMessage::kNotExecuted, error.error_number()});
    }
    _exit(1);
  }
  report.write_end.reset();
  KeeperMessage message;
  const bool told = receive(report.read_end.get(), message);
  if (told && message.kind == KeeperMessage::kStarted) return {std::move(report.read_end), keeper, message.value};
  waitpid(keeper, nullptr, 0);
  throw NotExecuted(command.front(), told ? message.value : ECHILD);
}

int Program::take_status() {
  KeeperMessage message;
  const bool told = receive(pipe_.get(), message);
  waitpid(keeper_, nullptr, 0);
  if (!told) throw_error(ErrorKind::kGone, "the keeper of process {} was killed: its exit status is lost", pid_);
  return message.value;
}

std::vector<pid_t> Program::orphans() const {
  std::vector<pid_t> children = read_children(keeper_);
  std::erase(children, pid_);
  return children;
}

void Program::signal(int signal) const noexcept {
  if (handle_) handle_->signal(signal);
}

void exit_as(int status) {
  if (!WIFSIGNALED(status)) std::exit(WEXITSTATUS(status));
  const int number = WTERMSIG(status);
  std::fflush(nullptr);
  prctl(PR_SET_DUMPABLE, 0);
  std::signal(number, SIG_DFL);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, number);
  sigprocmask(SIG_UNBLOCK, &mask, nullptr);
  raise(number);
  _exit(128 + number);
}

}  // namespace icp
