// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/capsule_agents.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

#include "coordinator/icpstepd/agent_broker.h"
#include "engine/base/error.h"

namespace icp {

using protocol::Packet;
CapsuleAgents::CapsuleAgents(const protocol::StepFacts& facts, const std::vector<CapsulePart>& parts) {
  try {
    for (const CapsulePart& part : parts) {
      Agent& agent = agents_.emplace_back();
      agent.ranks = part.ranks;
      start(agent, facts);
    }
  } catch (...) {
    end();
    throw;
  }
}

CapsuleAgents::~CapsuleAgents() { end(); }

void CapsuleAgents::start(Agent& agent, const protocol::StepFacts& facts) {
  protocol::StepFacts part = facts;
  part.local_tasks = static_cast<uint32_t>(agent.ranks.size());
  PartAgent started = start_part(part);
  agent.process.reset(static_cast<int>(::syscall(SYS_pidfd_open, started.pid, 0)));
  agent.control = std::move(started.control);
  agent.tasks = std::move(started.tasks);
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

// They are the broker's children, who does not wait for them. One that is still root, at its very beginning, ends when
// its sockets do.
void CapsuleAgents::end() noexcept {
  for (Agent& agent : agents_) {
    if (agent.process) ::syscall(SYS_pidfd_send_signal, agent.process.get(), SIGKILL, nullptr, 0);
    agent.process.reset();
    agent.control.reset();
    agent.tasks.reset();
  }
}

}  // namespace icp
