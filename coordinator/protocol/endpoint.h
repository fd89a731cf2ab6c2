// SPDX-License-Identifier: GPL-2.0-or-later
// Where icpctld listens: "host", "host:port", "[v6 address]:port".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace icp::net {

struct Endpoint {
  std::string host;  // a name or an address
  uint16_t port = 0;
};

// Nothing when it is none; `why` is then a sentence. A missing port is kDefaultPort (connection.h). An empty host is
// taken only when `any_host`: it means all addresses.
std::optional<Endpoint> parse_endpoint(const std::string& text, bool any_host, std::string& why);
// Several, separated by commas.
std::optional<std::vector<Endpoint>> parse_endpoints(const std::string& text, std::string& why);
std::string to_text(const Endpoint& endpoint);

}  // namespace icp::net
