// SPDX-License-Identifier: GPL-2.0-or-later
// icpctld's socket: connections, who they are, and where their messages go.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>

#include "coordinator/config.h"
#include "coordinator/icpctld/listener.h"
#include "coordinator/icpctld/requests.h"
#include "coordinator/icpctld/steps.h"
#include "coordinator/log_budget.h"
#include "coordinator/protocol/connection.h"

namespace icp {

// One thread.
class Server {
 public:
  // Listens at config.listen. Throws Error when it cannot.
  Server(boost::asio::io_context& io, const Config& config, Steps& steps, Requests& requests);
  ~Server();
  size_t connections() const { return peers_.size(); }

 private:
  struct Peer {
    net::Connection::Pointer connection;
    std::shared_ptr<Step> step;  // of an agent
    std::string node;
    std::string unknown;                               // where it comes from, as long as nobody has said who it is
    std::list<std::shared_ptr<Peer>>::iterator place;  // in unknown_ of that
    bool asked = false;                                // a command, whose answer is not out yet
    bool gone = false;
    boost::asio::steady_timer silent;
    explicit Peer(boost::asio::io_context& io) : silent(io) {}
  };
  using PeerPointer = std::shared_ptr<Peer>;

  void heartbeat();
  void came(boost::asio::ip::tcp::socket socket);
  void expect_word(const PeerPointer& peer);
  void received(const PeerPointer& peer, const std::string& payload);
  void agent(const PeerPointer& peer, const net::AgentHello& hello);
  void replace(const StepKey& key, const std::string& node);
  void command(const PeerPointer& peer, const net::Request& request);
  void complain(const std::string& text);
  void drop(const PeerPointer& peer, const std::string& why);
  void gone(const PeerPointer& peer, const std::string& why);
  void known(const PeerPointer& peer);

  boost::asio::io_context& io_;
  const Config& config_;
  Steps& steps_;
  Requests& requests_;
  net::MungeAuth munge_;
  boost::asio::thread_pool pool_{2};
  Listener<boost::asio::ip::tcp> listener_;
  boost::asio::steady_timer heartbeat_;
  std::list<PeerPointer> peers_;
  // Connections before their handshake's end, by where they come from, the oldest first.
  std::map<std::string, std::list<PeerPointer>> unknown_;
  LogBudget complaints_;  // of what anybody may do
};

}  // namespace icp
