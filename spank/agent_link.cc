// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/agent_link.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "coordinator/protocol/agent_sockets.h"

namespace icp::spank {
namespace {

using protocol::kAgentControl, protocol::kAgentTasks;

// Runs in the forked child: async-signal-safe calls only, since slurmstepd has other threads. Reports errno through
// `report` when the program cannot be executed.
[[noreturn]] void become_agent(const char* const* argv, const char* const* envp, int control, int tasks, int report) {
  ::setsid();
  sigset_t none;
  sigemptyset(&none);
  for (int signal = 1; signal < NSIG; signal++) ::signal(signal, SIG_DFL);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  // Out of the way of the numbers to come first.
  control = ::fcntl(control, F_DUPFD_CLOEXEC, 10);
  tasks = ::fcntl(tasks, F_DUPFD_CLOEXEC, 10);
  report = ::fcntl(report, F_DUPFD_CLOEXEC, 10);
  // slurmstepd's descriptors hold the step's streams open: srun would wait for us.
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3; fd++) ::dup2(null, fd);
  ::dup2(control, kAgentControl);
  ::dup2(tasks, kAgentTasks);
  ::dup2(report, kAgentTasks + 1);
  ::fcntl(kAgentTasks + 1, F_SETFD, FD_CLOEXEC);
  ::close_range(kAgentTasks + 2, ~0U, 0);
  if (::chdir("/") != 0) ::_exit(1);
  ::execve(argv[0], const_cast<char* const*>(argv), const_cast<char* const*>(envp));
  const int error = errno;
  if (::write(kAgentTasks + 1, &error, sizeof error) < 0) ::_exit(2);
  ::_exit(1);
}

// Forks twice and waits until the program runs. Returns an errno value.
int launch(const char* const* argv, const char* const* envp, int control, int tasks) {
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0) return errno;
  const pid_t middle = ::fork();
  if (middle == 0) {
    const pid_t agent = ::fork();
    if (agent == 0) become_agent(argv, envp, control, tasks, report[1]);
    ::_exit(agent < 0 ? 1 : 0);
  }
  int error = middle < 0 ? errno : 0, status = 0;
  ::close(report[1]);
  while (middle > 0 && ::waitpid(middle, &status, 0) < 0 && errno == EINTR) {
  }
  if (middle > 0) {
    int told = 0;
    ssize_t got = 0;
    do {
      got = ::read(report[0], &told, sizeof told);
    } while (got < 0 && errno == EINTR);
    if (got == sizeof told) error = told;
    if (status != 0) error = EAGAIN;
  }
  ::close(report[0]);
  return error;
}

}  // namespace

std::string AgentLink::start(const Settings& settings, const protocol::StepFacts& facts) {
  int control[2], tasks[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0) {
    return std::string("cannot make a socket for icpstepd: ") + std::strerror(errno);
  }
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, tasks) != 0) {
    const int error = errno;
    ::close(control[0]);
    ::close(control[1]);
    return std::string("cannot make a socket for icpstepd: ") + std::strerror(error);
  }
  const std::string node = "SLURMD_NODENAME=" + facts.node;
  const char* const argv[] = {settings.icpstepd.c_str(), "step", "--config", settings.config.c_str(), nullptr};
  const char* const envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", node.c_str(), nullptr};
  const int error = launch(argv, envp, control[1], tasks[1]);
  ::close(control[1]);
  ::close(tasks[1]);
  if (error == 0 && protocol::send_packet(control[0], facts.to_packet())) {
    control_ = control[0];
    tasks_ = tasks[0];
    return {};
  }
  ::close(control[0]);
  ::close(tasks[0]);
  return "cannot start " + settings.icpstepd + ": " + std::strerror(error == 0 ? EPIPE : error);
}

void AgentLink::tell(const protocol::Packet& packet) const {
  // The agent may be busy in a long version, but its queue holds more than a step ever says; one that is gone is
  // noticed at the end.
  if (running()) protocol::send_packet(control_, packet);
}

protocol::Packet AgentLink::announce(protocol::Packet ready, int timeout_ms) {
  int pair[2];
  if (!running() || ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return {};
  ready.fds = {pair[1]};
  const bool sent = protocol::send_packet(tasks_, ready);
  ::close(pair[1]);
  task_ = pair[0];
  protocol::Packet answer;
  if (sent && protocol::receive_packet(task_, answer, timeout_ms) == protocol::Received::kPacket) return answer;
  return {};
}

bool AgentLink::finish(int timeout_ms) {
  if (!running()) return true;
  protocol::send_packet(control_, protocol::Packet(protocol::kGoodbye));
  protocol::Packet ignored;
  const bool ended = protocol::receive_packet(control_, ignored, timeout_ms) != protocol::Received::kNothing;
  ::close(control_);
  ::close(tasks_);
  control_ = tasks_ = -1;
  return ended;
}

}  // namespace icp::spank
