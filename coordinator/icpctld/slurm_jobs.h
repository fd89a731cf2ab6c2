// SPDX-License-Identifier: GPL-2.0-or-later
// What Slurm itself says of a job, and what icpctld asks Slurm to do with it. Blocking calls of libslurm: not for the
// thread that serves connections.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include "coordinator/protocol/slurm_errors.h"

namespace icp {

struct SlurmJob {
  enum State { kPending, kRunning, kFinished };
  uint32_t id = 0;
  uid_t uid = 0;
  State state = kPending;
  bool batch = false;
  bool completing = false;
  uint32_t restarts = 0;  // how often it was requeued
  bool requeue = false;   // Slurm may requeue it
  time_t start = 0;       // of this run
  time_t end = 0;         // its time limit, while it runs; 0: none
  std::string nodes;      // of its last run, as Slurm lists them
  std::string excluded;   // nodes on which it must not run, likewise
  std::string comment;
  std::string end_state;  // "COMPLETED", "NODE_FAIL"; empty: it has not ended
  bool preempted = false;
};

struct SlurmNode {
  std::string name;
  std::string reason;
  bool drained = false;  // or in a maintenance reservation
};

using enum net::SlurmError;

// slurm_conf: empty for Slurm's default. Once, before the others.
void init_slurm(const std::string& slurm_conf);
// 0, or kInvalidJobId, or the number of a communication error.
uint32_t load_job(uint32_t id, SlurmJob& job);
// True for an error number that means that slurmctld could not be asked.
bool is_unreachable(uint32_t code);
uint32_t requeue_job(uint32_t id);
// The same, to run on these nodes and no others.
uint32_t requeue_job_on(uint32_t id, const std::string& nodes);
// The same, to run on nodes that are not among these.
uint32_t requeue_job_without(uint32_t id, const std::string& nodes);
// Requeued and held: it begins when somebody releases it. `why` is added to its comment.
uint32_t requeue_job_held(uint32_t id, const std::string& why);
uint32_t cancel_job(uint32_t id);

// All nodes of the cluster.
uint32_t load_nodes(std::vector<SlurmNode>& nodes);
uint32_t drain_nodes(const std::string& nodes, const std::string& reason);
// The names of "n[1-3],m"; nothing for what is no such list, has two brackets in one name, or is longer than `most`.
std::vector<std::string> names_of_nodes(const std::string& list, size_t most = 100'000);
std::string slurm_text(uint32_t code);

}  // namespace icp
