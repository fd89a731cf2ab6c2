// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/agent_link.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "coordinator/protocol/agent_sockets.h"
#include "spank/start_program.h"

namespace icp::spank {

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
  static_assert(protocol::kAgentControl == 3 && protocol::kAgentTasks == 4);
  const int error = start_program(argv, envp, control[1], tasks[1]);
  ::close(control[1]);
  ::close(tasks[1]);
  // Two packets a task, hundreds of tasks: what is said while the agent is busy.
  const int room = 8 << 20;
  ::setsockopt(control[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
  if (error == 0 && protocol::send_packet(control[0], facts.to_packet())) {
    control_ = control[0];
    tasks_ = tasks[0];
    return {};
  }
  ::close(control[0]);
  ::close(tasks[0]);
  return "cannot start " + settings.icpstepd + ": " + std::strerror(error == 0 ? EPIPE : error);
}

void AgentLink::tell(const protocol::Packet& packet) {
  // The agent may be busy in a long version, but its queue holds more than a step ever says; one that is gone is
  // noticed at the end.
  if (running()) send(packet);
}

bool AgentLink::send(const protocol::Packet& packet) {
  constexpr int kPatience = 2'000;  // ms
  const bool sent = protocol::send_packet(control_, packet, stuck_ ? 0 : kPatience);
  stuck_ = stuck_ || (!sent && errno == EAGAIN);
  return sent;
}

protocol::Packet AgentLink::announce(protocol::Packet ready, int timeout_ms) {
  int pair[2];
  if (!running() || ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return {};
  ready.fds = {pair[1]};
  const bool sent = protocol::send_packet(tasks_, ready, timeout_ms);
  ::close(pair[1]);
  task_ = pair[0];
  protocol::Packet answer;
  if (sent && protocol::receive_packet(task_, answer, timeout_ms) == protocol::Received::kPacket) return answer;
  return {};
}

bool AgentLink::finish(int timeout_ms) {
  if (!running()) return true;
  const bool sent = send(protocol::Packet(protocol::kGoodbye));
  protocol::Packet ignored;
  const bool ended = sent ? protocol::receive_packet(control_, ignored, timeout_ms) != protocol::Received::kNothing
                          : errno == EPIPE || errno == ECONNRESET;
  ::close(control_);
  ::close(tasks_);
  control_ = tasks_ = -1;
  return ended;
}

}  // namespace icp::spank
