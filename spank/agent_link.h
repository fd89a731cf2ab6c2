// SPDX-License-Identifier: GPL-2.0-or-later
// slurmstepd's end of icpstepd: starting it, and talking to it.
#pragma once

#include <string>

#include "coordinator/protocol/packet.h"
#include "spank/settings.h"

namespace icp::spank {

// The step's agent as slurmstepd and the tasks it forks see it. Used from slurmstepd's main thread and from the
// tasks' single threads; no call blocks for longer than it says, no call throws.
class AgentLink {
 public:
  // Starts icpstepd and tells it about the step. Returns what went wrong, or nothing.
  //
  // icpstepd is a child of nobody of Slurm's (forked twice, own session): proctrack/linuxproc signals every
  // descendant of slurmstepd, and slurmstepd reaps its children by wait(-1). It ends when this socket closes, hence
  // also when slurmstepd is killed.
  std::string start(const Settings& settings, const protocol::StepFacts& facts);
  bool running() const { return control_ >= 0; }

  void tell(const protocol::Packet& packet);

  // In the forked task, just before exec, as the user: says who and where it is and waits for the answer, which is
  // kRun, kRestart or kFail; empty when none came within `timeout_ms`. The task's socket stays open across the call,
  // and closes at exec: that is how icpstepd knows that the task runs its own program.
  protocol::Packet announce(protocol::Packet ready, int timeout_ms);
  int task_socket() const { return task_; }

  // Says goodbye and waits at most `timeout_ms` until icpstepd has ended. False: it is still there.
  bool finish(int timeout_ms);

 private:
  // The agent is its user's process, who may stop it: slurmstepd does not wait for that more than once.
  bool send(const protocol::Packet& packet);

  bool stuck_ = false;
  int control_ = -1;  // packets to icpstepd
  int tasks_ = -1;    // inherited by the tasks: their first packet
  int task_ = -1;     // in a task: its own
};

}  // namespace icp::spank
