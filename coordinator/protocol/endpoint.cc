// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/endpoint.h"

#include <fmt/format.h>

#include <charconv>

#include "coordinator/protocol/connection.h"

namespace icp::net {

std::optional<Endpoint> parse_endpoint(const std::string& text, bool any_host, std::string& why) {
  Endpoint endpoint{text, kDefaultPort};
  std::string port;
  bool has_port = false;
  if (text.starts_with('[')) {
    const size_t end = text.find(']');
    if (end == std::string::npos || (end + 1 < text.size() && text[end + 1] != ':')) {
      why = fmt::format("'{}' is not [address]:port", text);
      return std::nullopt;
    }
    endpoint.host = text.substr(1, end - 1);
    has_port = end + 1 < text.size();
    if (has_port) port = text.substr(end + 2);
  } else if (const size_t colon = text.rfind(':'); colon != std::string::npos && text.find(':') == colon) {
    endpoint.host = text.substr(0, colon);
    port = text.substr(colon + 1);
    has_port = true;
  }
  if (has_port) {
    unsigned value = 0;
    const auto [stop, error] = std::from_chars(port.data(), port.data() + port.size(), value);
    if (error != std::errc() || stop != port.data() + port.size() || value == 0 || value > 65535) {
      why = fmt::format("'{}' in '{}' is not a port, 1 to 65535", port, text);
      return std::nullopt;
    }
    endpoint.port = static_cast<uint16_t>(value);
  }
  if ((endpoint.host.empty() && !any_host) || endpoint.host.find_first_of(" /@") != std::string::npos) {
    why = fmt::format("'{}' is not host or host:port", text);
    return std::nullopt;
  }
  return endpoint;
}

std::optional<std::vector<Endpoint>> parse_endpoints(const std::string& text, std::string& why) {
  std::vector<Endpoint> all;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    std::string part = text.substr(begin, comma - begin);
    while (part.starts_with(' ')) part.erase(0, 1);
    while (part.ends_with(' ')) part.pop_back();
    const auto endpoint = parse_endpoint(part, false, why);
    if (!endpoint) return std::nullopt;
    all.push_back(*endpoint);
    begin = comma + 1;
  }
  return all;
}

std::string to_text(const Endpoint& endpoint) {
  const bool v6 = endpoint.host.find(':') != std::string::npos;
  return fmt::format("{}{}{}:{}", v6 ? "[" : "", endpoint.host, v6 ? "]" : "", endpoint.port);
}

}  // namespace icp::net
