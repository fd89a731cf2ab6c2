// SPDX-License-Identifier: GPL-2.0-or-later
// Numbers for Prometheus, in its text format, over HTTP at icp.yaml's `metrics`. Off by default: whoever reaches the
// port may read them.
#pragma once

#include <functional>
#include <string>

#include "coordinator/icpctld/listener.h"
#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/endpoint.h"

namespace icp {

class Metrics {
 public:
  // `text` makes the body of an answer. Throws Error when the address cannot be listened at.
  Metrics(boost::asio::io_context& io, const net::Endpoint& endpoint, std::function<std::string()> text);

 private:
  void came(boost::asio::ip::tcp::socket socket);

  std::function<std::string()> text_;
  int open_ = 0;  // connections
  Listener<boost::asio::ip::tcp> listener_;
};

}  // namespace icp
