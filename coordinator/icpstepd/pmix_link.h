// SPDX-License-Identifier: GPL-2.0-or-later
// The agent's end of the relay between the tasks of a step on this node and Slurm's PMIx server (pmix/relay.h), or their
// process manager of PMI-1 (pmi/relay.h). A step has one of the two at most.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_table.h"

namespace icp {

// By kind, how many fences somebody has been told the end of.
using Fences = std::map<std::string, uint64_t>;

// Not thread-safe. Of a step without either all members do nothing.
class PmixLink {
 public:
  // What a task says before it executes its program (kReady).
  void task_said(const protocol::Packet& ready);
  // Adds to the answer to a task that is to run (kRun) where its server is; to the first one's also the relay, which it
  // starts. The packet's descriptors are the caller's to close.
  void let_run(protocol::Packet& run, const std::string& relay_program);
  bool active() const { return static_cast<bool>(control_); }
  // The socket for a relay that is about to be restored; -1 without a server.
  int restored_end();
  // Tells the relay of this step's server, and how far fences are on other nodes.
  void serve(const Fences& there = {});
  // How far they are here. Waits for the relay, which has been restored and runs; empty when it does not answer.
  Fences fences();
  // So that versions know the relay by its socket.
  void add_stream(std::vector<OuterStreamId>& outer) const;

 private:
  void make_sockets();
  void let_run_with_pmi(protocol::Packet& run, const std::string& relay_program);

  std::string uri_, name_space_;  // of Slurm's server
  bool pmi_ = false;              // tasks have connections to a process manager
  std::string address_;           // where the relay listens
  UniqueFd control_, relays_end_;
  uint64_t dev_ = 0, ino_ = 0;  // of the relay's end
};

}  // namespace icp
