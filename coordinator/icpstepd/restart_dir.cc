// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/restart_dir.h"

#include <spdlog/spdlog.h>

#include "coordinator/icpstepd/coordinator_link.h"
#include "coordinator/protocol/coordinator_client.h"
#include "engine/base/error.h"

namespace icp {

std::string wanted_restart_dir(const Config& config, const protocol::StepFacts& facts) {
  constexpr std::chrono::milliseconds kPatience{1000};
  if (config.coordinators.empty()) return {};
  net::Request request;
  request.set_operation(net::OP_RESTART_DIR);
  request.set_job(facts.job);
  request.set_restarts(facts.restarts);
  try {
    const net::ClientSettings settings{config.coordinators, uid_of_coordinator(config), config.munge_socket, kPatience};
    const net::Reply reply = net::ask(settings, request, kPatience);
    if (reply.code() != 0) spdlog::warn("icpctld does not say where to go on from: error {}", reply.code());
    return reply.code() == 0 ? reply.text() : std::string();
  } catch (const Error& error) {
    spdlog::warn("whether to go on from another directory than the job's own is not known: {}", error.what());
    return {};
  }
}

}  // namespace icp
