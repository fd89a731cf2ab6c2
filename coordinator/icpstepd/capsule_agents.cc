// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/capsule_agents.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>

#include "coordinator/protocol/agent_sockets.h"
#include "engine/base/error.h"

namespace icp {

using protocol::Packet;
namespace {

struct SocketPair {
  UniqueFd ours, theirs;
  SocketPair() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) throw_errno("cannot make a socket pair");
    ours.reset(ends[0]);
    theirs.reset(ends[1]);
  }
};

// Above the numbers that the sockets get in the agent, so that putting one there does not cover the other.
UniqueFd out_of_the_way(const UniqueFd& fd) {
  UniqueFd high(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 10));
  if (!high) throw_errno("cannot duplicate a socket");
  return high;
}

pid_t spawn(const std::vector<std::string>& words, int control, int tasks) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, control, protocol::kAgentControl);
  posix_spawn_file_actions_adddup2(&actions, tasks, protocol::kAgentTasks);
  posix_spawn_file_actions_addclosefrom_np(&actions, protocol::kAgentTasks + 1);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    throw Error(ErrorKind::kSystem, fmt::format("cannot start an agent for a capsule: {}", errno_text(error)), error);
  }
  return pid;
}

}  // namespace

CapsuleAgents::CapsuleAgents(const protocol::StepFacts& facts, const std::string& config,
                             const std::vector<CapsulePart>& parts) {
  try {
    for (const CapsulePart& part : parts) {
      Agent& agent = agents_.emplace_back();
      agent.ranks = part.ranks;
      start(agent, facts, config);
    }
  } catch (...) {
    end();
    throw;
  }
}

CapsuleAgents::~CapsuleAgents() { end(); }

void CapsuleAgents::start(Agent& agent, const protocol::StepFacts& facts, const std::string& config) {
  SocketPair control, tasks;
  const UniqueFd their_control = out_of_the_way(control.theirs), their_tasks = out_of_the_way(tasks.theirs);
  agent.pid = spawn({"icpstepd", "step", "--config", config, "--part-of", std::to_string(::getpid())},
                    their_control.get(), their_tasks.get());
  agent.control = std::move(control.ours);
  agent.tasks = std::move(tasks.ours);
  protocol::StepFacts part = facts;
  part.local_tasks = static_cast<uint32_t>(agent.ranks.size());
  if (!protocol::send_packet(agent.control.get(), part.to_packet())) throw_errno("cannot speak to a capsule's agent");
}

CapsuleAgents::Agent* CapsuleAgents::find(const Packet& packet) {
  const auto rank = packet.number("rank");
  for (Agent& agent : agents_)
    if (rank && agent.ranks.contains(static_cast<int>(*rank))) return &agent;
  return nullptr;
}

void CapsuleAgents::slurmstepd_said(const Packet& packet) {
  if (const Agent* const agent = find(packet)) protocol::send_packet(agent->control.get(), packet);
}

void CapsuleAgents::task_said(Packet& packet) {
  // One whose agent is gone finds its socket closed.
  if (const Agent* const agent = find(packet)) protocol::send_packet(agent->tasks.get(), packet);
  packet.close_fds();
}

void CapsuleAgents::goodbye(int timeout_ms) {
  using Clock = std::chrono::steady_clock;
  const auto until = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (const Agent& agent : agents_) protocol::send_packet(agent.control.get(), Packet(protocol::kGoodbye));
  for (const Agent& agent : agents_) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    Packet ignored;
    protocol::receive_packet(agent.control.get(), ignored, std::max(0, static_cast<int>(left)));
  }
}

void CapsuleAgents::end() noexcept {
  for (Agent& agent : agents_) {
    if (agent.pid <= 0) continue;
    ::kill(agent.pid, SIGKILL);
    int status = 0;
    while (::waitpid(agent.pid, &status, 0) < 0 && errno == EINTR) {
    }
    agent.pid = 0;
  }
}

}  // namespace icp
