// SPDX-License-Identifier: GPL-2.0-or-later
// A node that gets several capsules of a step: an agent for each, started by the step's agent, which from then on only
// hands on what slurmstepd and the tasks say.
//
// Processes rather than threads: ptrace, the file-system identity and namespaces belong to a thread, and an agent of
// its own is what a capsule has on a node of its own. They do not outlive the step's agent, nor their capsules them.
#pragma once

#include <sys/types.h>

#include <set>
#include <string>
#include <vector>

#include "coordinator/icpstepd/capsule_layout.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"

namespace icp {

class CapsuleAgents {
 public:
  // One agent for each part. Throws Error with none left behind.
  CapsuleAgents(const protocol::StepFacts& facts, const std::vector<CapsulePart>& parts);
  ~CapsuleAgents();  // kills those that still run
  CapsuleAgents(const CapsuleAgents&) = delete;
  CapsuleAgents& operator=(const CapsuleAgents&) = delete;

  // Of slurmstepd: kTask, kTaskExit, by their rank.
  void slurmstepd_said(const protocol::Packet& packet);
  // A task that announces itself; takes the packet's descriptors.
  void task_said(protocol::Packet& packet);
  // The step ends: waits for the agents to end by themselves, for at most `timeout_ms` in all.
  void goodbye(int timeout_ms);

 private:
  struct Agent {
    std::set<int> ranks;
    UniqueFd control, tasks;
    UniqueFd process;  // pidfd: nobody waits for it, and its number may be another's one day
  };
  void start(Agent& agent, const protocol::StepFacts& facts);
  Agent* find(const protocol::Packet& packet);
  void end() noexcept;

  std::vector<Agent> agents_;
};

}  // namespace icp
