// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <functional>
#include <utility>

#include "coordinator/protocol/asio.h"

namespace icp {

// A descriptor of an agent's, closed with this.
using Socket = boost::asio::posix::stream_descriptor;

// Calls `ready` the next time the socket can be read (or has ended). The socket may be destroyed meanwhile.
inline void when_readable(Socket& socket, std::function<void()> ready) {
  socket.async_wait(Socket::wait_read, [ready = std::move(ready)](boost::system::error_code error) {
    if (!error) ready();
  });
}

}  // namespace icp
