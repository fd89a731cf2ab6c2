// SPDX-License-Identifier: GPL-2.0-or-later
// icpctld, as the commands of icp know it.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "coordinator/icp/job_id.h"
#include "coordinator/protocol/coordinator_client.h"

namespace icp {

// For whatever is answered at once.
inline constexpr std::chrono::seconds kAnswerTimeout{30};
// For a version: icpctld gives up long before, by its own timeouts.
inline constexpr std::chrono::hours kLongestWait{48};

// Thread-safe.
class JobClient {
 public:
  // Reads icp.yaml: `config` if it is not empty, else $ICP_CONFIG, else /etc/slurm-icp/icp.yaml. Throws Error: kUsage
  // for what is wrong in it, kRefused if no coordinator is configured.
  explicit JobClient(const std::string& config);

  // Throws Error as net::ask() does. A refusal is an answer.
  net::Reply ask(const net::Request& request, std::chrono::milliseconds timeout = kAnswerTimeout) const;

 private:
  net::ClientSettings settings_;
};

// A request about one job or step; about all for nothing.
net::Request request_of(net::Operation operation, const std::optional<JobId>& id);

// A directory as icpctld needs it, who does not know the caller's: relative ones are meant from here.
std::string absolute_dir(const std::string& dir);

// The text of a refusal: what icpctld says, which may be more than Slurm's text, or that.
std::string refusal(const net::Reply& reply);

}  // namespace icp
