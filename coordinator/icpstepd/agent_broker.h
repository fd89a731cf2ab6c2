// SPDX-License-Identifier: GPL-2.0-or-later
// What root does for a step's agent beside the engine's operations (engine/broker/broker.h).
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"

namespace icp {

// The agent goes on with the rights of the step's user alone; see become_worker(). `facts` are slurmstepd's word, and
// what the broker goes by from then on. `sockets`: slurmstepd's (first) and the tasks', which are not the broker's.
// `part`: this is the agent of one of several capsules, which starts no others.
void become_step_worker(const protocol::StepFacts& facts, const Config& config, const std::string& config_path,
                        const std::vector<int>& sockets, bool part);

// Requests of the agent. They throw Error.

// A credential by which icpctld knows root's agent of this step; see MungeAuth::encode. Thread-safe.
std::string agent_credential(const std::string& payload, uid_t reader);
// Charges the agent's memory to the step of this task, and limits it there, where Slurm does so with tasks.
void charge_to_step(pid_t task);
// Puts a child of the agent into the cgroups of the first of these tasks that has not ended.
void join_step(pid_t child, const std::vector<pid_t>& tasks);
// What of System V objects the processes of the step have made since the last look is written into the job's ledger
// (`ipc: host`). False when there is none to keep.
bool look_at_ipc(const std::vector<pid_t>& tasks);
// True once the batch script has begun a step of its own.
bool job_has_steps();

// An agent for another capsule of the step on this node, with its two sockets.
struct PartAgent {
  pid_t pid = 0;
  UniqueFd control, tasks;
};
// `facts`: only what the agent has chosen counts (image to restart from, number of capsules, tasks).
PartAgent start_part(const protocol::StepFacts& facts);

}  // namespace icp
