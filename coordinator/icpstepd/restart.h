// SPDX-License-Identifier: GPL-2.0-or-later
// A step's restart: the restored capsule and the proxies that stand in for its tasks.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/icpstepd/image_choice.h"
#include "coordinator/protocol/coordinator.pb.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/error.h"
#include "engine/session.h"

namespace icp {

// What a proxy lent: the streams of its task.
struct ProxyStreams {
  pid_t pid = 0;
  std::array<UniqueFd, 3> fds;
  UniqueFd pmi;      // its connection to MPI's process manager, if it has one
  std::string cpus;  // a cpu_set_t: the processors that Slurm gives the task
};

// What the other capsules of the step have a say in. Empty members for a step of one.
struct RestartTogether {
  // All try the same versions, one after the other: this is the how manieth, from 0.
  uint32_t attempt = 0;
  // Called with why this version cannot be restored here, and whether there is an older one to try. Returns whether
  // that is what all do.
  std::function<bool(const Error&, bool again, uint32_t attempt)> failed;
  // Called with the version chosen, with this host's addresses that are other ones now, and with the ends that lead to
  // other capsules; returns the same of all.
  std::function<net::RestartGo(const net::RestartReady&)> chosen;
  // As NetworkRestore::meet, in this attempt.
  std::function<std::vector<ConnectionEnd>(const std::vector<ConnectionEnd>&, uint32_t attempt)> meet;
};

struct RestartResult {
  RestoredCapsule capsule;
  std::vector<std::string> passed_over;  // for the user: newer versions that cannot be restored, and why
  std::string line;                      // for the user: step, version, when it was taken, processes, bytes
};

// Restores the first of the plan's versions that is whole. The processes join the cgroups of the lowest rank's proxy.
// `pmix_relay`, `launched`: as in RestoreOptions.
// Throws Error with nothing left behind: task counts differ, image damaged, ...
RestartResult restore_step(const StartPlan& plan, const protocol::StepFacts& facts, const Config& config,
                           const std::map<int, ProxyStreams>& proxies, int pmix_relay,
                           const std::map<int, int>& launched, RestartTogether together);

// Sends a signal to the tree of processes below (and with) a task.
void signal_tree(const TaskRoot& root, int signal);

}  // namespace icp
