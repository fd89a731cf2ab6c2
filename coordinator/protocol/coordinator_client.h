// SPDX-License-Identifier: GPL-2.0-or-later
// One question to icpctld and its answer, for commands.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "coordinator/protocol/coordinator.pb.h"
#include "coordinator/protocol/endpoint.h"

namespace icp::net {

struct ClientSettings {
  std::vector<Endpoint> coordinators;  // tried in this order
  uid_t coordinator_uid = 0;           // whom it must run as
  std::string munge_socket;            // empty: MUNGE's default
  std::chrono::milliseconds connect_timeout{5000};
};

// Connects, asks, waits for the answer for at most `timeout`. Throws Error: nobody answers (kSystem, with all that was
// tried), or who answers cannot be trusted (kPermission). An answer with a code other than 0 is returned as it is.
Reply ask(const ClientSettings& settings, const Request& request, std::chrono::milliseconds timeout);

}  // namespace icp::net
