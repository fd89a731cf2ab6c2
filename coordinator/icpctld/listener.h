// SPDX-License-Identifier: GPL-2.0-or-later
// A socket at which connections are taken, one after the other, for ever.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>

#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/endpoint.h"

namespace icp {

// One thread.
template <typename Protocol>
class Listener {
 public:
  using Socket = boost::asio::basic_stream_socket<Protocol>;
  using Error = boost::system::error_code;

  // `failed` is told when a connection cannot be taken, and may be empty.
  Listener(boost::asio::io_context& io, std::function<void(Socket)> came, std::function<void(const Error&)> failed = {})
      : acceptor_(io), again_(io), came_(std::move(came)), failed_(std::move(failed)) {}

  // To be opened, bound and made to listen before start().
  boost::asio::basic_socket_acceptor<Protocol>& acceptor() { return acceptor_; }
  void start() { accept(); }

 private:
  void accept() {
    acceptor_.async_accept([this](Error error, Socket socket) {
      if (error == boost::asio::error::operation_aborted) return;
      if (!error) came_(std::move(socket));
      if (!error) return accept();
      // No descriptor left, as a rule: those that are open go on.
      if (failed_) failed_(error);
      again_.expires_after(std::chrono::milliseconds(200));
      again_.async_wait([this](Error stopped) {
        if (!stopped) accept();
      });
    });
  }

  boost::asio::basic_socket_acceptor<Protocol> acceptor_;
  boost::asio::steady_timer again_;
  std::function<void(Socket)> came_;
  std::function<void(const Error&)> failed_;
};

// Makes it listen at an address; without a host at all of them, of IPv4 and IPv6. Throws Error that begins with `key`,
// of icp.yaml.
void listen_at(Listener<boost::asio::ip::tcp>& listener, boost::asio::io_context& io, const net::Endpoint& endpoint,
               const char* key, int backlog);

}  // namespace icp
