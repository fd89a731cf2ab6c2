// SPDX-License-Identifier: GPL-2.0-or-later
// The requests of icp over HTTP and JSON, for programs: at a local socket (`rest` in icp.yaml), whose other end the
// kernel names, and over TCP (`rest_listen`), where a MUNGE credential does. Off by default. See docs/openapi.yaml.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "coordinator/config.h"
#include "coordinator/icpctld/listener.h"
#include "coordinator/icpctld/requests.h"
#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/munge_auth.h"

namespace icp {

// One thread; what may block is done in one of its own.
class Rest {
 public:
  // Throws Error when it cannot listen. A socket that is left of an earlier icpctld is replaced.
  Rest(boost::asio::io_context& io, const Config& config, Requests& requests);
  ~Rest();

  // What the connections of both kinds need.
  struct Shared {
    Shared(boost::asio::io_context& context, Requests& all, const std::string& munge_socket)
        : io(context), requests(all), munge(munge_socket) {}
    boost::asio::io_context& io;
    Requests& requests;
    net::MungeAuth munge;
    boost::asio::thread_pool pool{1};
    std::map<uid_t, int> of_user;  // connections
    int open = 0;
  };

 private:
  const std::string path_;
  std::shared_ptr<Shared> shared_;
  Listener<boost::asio::local::stream_protocol> local_;
  Listener<boost::asio::ip::tcp> remote_;
};

}  // namespace icp
