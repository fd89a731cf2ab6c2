// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/server.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "engine/base/error.h"

namespace icp {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr milliseconds kHandshake{10'000};
constexpr milliseconds kFirstWord{10'000};  // after the handshake a peer says who it is
constexpr size_t kMostConnectionsInAll = 20'000;
constexpr size_t kMostOfOneUser = 100;  // connections of commands
constexpr size_t kMostAgentsOfOneUser = kMostConnectionsInAll / 2;
// Connections of one address that have not said who they are yet. Agents of as many steps may come at once. Of more the
// oldest is dropped, since a handshake takes milliseconds: nobody keeps others away by connections that say nothing.
constexpr size_t kMostUnknown = 1100;

// Whose turn it is to be counted: an IPv4 address, or the network of an IPv6 one, in which a host has as many as it
// likes.
std::string origin_of(const tcp::socket& socket) {
  error_code error;
  const asio::ip::address address = socket.remote_endpoint(error).address();
  if (error) return "?";
  if (address.is_v4()) return address.to_string();
  const asio::ip::address_v6 v6 = address.to_v6();
  if (v6.is_v4_mapped()) return asio::ip::make_address_v4(asio::ip::v4_mapped, v6).to_string();
  const auto bytes = v6.to_bytes();
  return {bytes.begin(), bytes.begin() + bytes.size() / 2};
}

}  // namespace

Server::Server(asio::io_context& io, const Config& config, Steps& steps, Requests& requests)
    : io_(io),
      config_(config),
      steps_(steps),
      requests_(requests),
      munge_(config.munge_socket),
      listener_(
          io, [this](tcp::socket socket) { came(std::move(socket)); },
          [](const error_code& error) { spdlog::error("cannot accept a connection: {}", error.message()); }),
      heartbeat_(io) {
  listen_at(listener_, io, config.listen, "listen", asio::socket_base::max_listen_connections);
  listener_.start();
  heartbeat();
}

Server::~Server() {
  for (const PeerPointer& peer : peers_) peer->connection->close();
  pool_.join();
}

void Server::heartbeat() {
  for (const PeerPointer& peer : peers_) {
    if (peer->step) peer->connection->send({});
  }
  heartbeat_.expires_after(net::kHeartbeat);
  heartbeat_.async_wait([this](error_code stopped) {
    if (!stopped) heartbeat();
  });
}

void Server::came(tcp::socket socket) {
  if (peers_.size() >= kMostConnectionsInAll)
    return complain(fmt::format("{} connections: another one is turned away", peers_.size()));
  const std::string origin = origin_of(socket);
  std::list<PeerPointer>& unknown = unknown_[origin];
  if (unknown.size() >= kMostUnknown) {
    const PeerPointer oldest = unknown.front();
    complain(
        fmt::format("{} connections of {} have not said who they are", unknown.size(), oldest->connection->address()));
    oldest->connection->close();
    gone(oldest, "too many have not said who they are");
  }
  const auto peer = std::make_shared<Peer>(io_);
  peer->unknown = origin;
  std::list<PeerPointer>& waiting = unknown_[origin];  // the last one's end has removed it
  peer->place = waiting.insert(waiting.end(), peer);
  net::Connection::Handlers handlers;
  handlers.ready = [this, peer] {
    known(peer);
    const uid_t uid = peer->connection->uid();
    const auto same = [uid](const PeerPointer& other) { return other->connection->uid() == uid; };
    if (uid != 0 && static_cast<size_t>(std::count_if(peers_.begin(), peers_.end(), same)) > kMostOfOneUser)
      return drop(peer, "has too many connections");
    expect_word(peer);
  };
  handlers.received = [this, peer](const std::string& payload) { received(peer, payload); };
  handlers.closed = [this, peer](const std::string& why) { gone(peer, why); };
  peer->connection = net::Connection::accept(std::move(socket), munge_, pool_, kHandshake, std::move(handlers));
  peers_.push_back(peer);
}

// A peer that is no agent and waits for no answer has to ask something soon.
void Server::expect_word(const PeerPointer& peer) {
  if (peer->gone) return;
  peer->silent.expires_after(kFirstWord);
  peer->silent.async_wait([this, peer](error_code error) {
    if (error || peer->gone || peer->step || peer->asked) return;
    // Who has spoken is not silent, however long icpctld was busy with a thousand others.
    if (peer->connection->unread()) return expect_word(peer);
    drop(peer, "says nothing");
  });
}

void Server::received(const PeerPointer& peer, const std::string& payload) {
  net::ToCoordinator message;
  if (!message.ParseFromString(payload)) return drop(peer, "sends something that is no message");
  try {
    if (message.has_agent()) return agent(peer, message.agent());
    if (message.has_request()) return command(peer, message.request());
    if (!peer->step) return drop(peer, "speaks before it says who it is");
    steps_.agent_said(peer->step, peer->node, message);
  } catch (const Error& error) {
    // The catalog: a full disk, most likely. Nobody's connection suffers from that.
    spdlog::error("{}", error.what());
  }
}

void Server::agent(const PeerPointer& peer, const net::AgentHello& hello) {
  // Step agents have root's word for which step they are; root itself may be any.
  if (peer->connection->uid() != 0) return drop(peer, "wants to be an agent and is not root");
  const net::AgentName name{hello.job(), hello.step(), hello.restarts(), hello.uid()};
  if (peer->connection->agent() && peer->connection->agent() != name)
    return drop(peer, "wants to be another step's agent");
  if (peer->step) return drop(peer, "says twice who it is");
  const auto of_user = [uid = name.uid](const PeerPointer& other) {
    return other->step && other->step->facts.uid == uid;
  };
  if (name.uid != 0 &&
      static_cast<size_t>(std::count_if(peers_.begin(), peers_.end(), of_user)) >= kMostAgentsOfOneUser)
    return drop(peer, "is one agent too many of its user");
  std::string why;
  replace(StepKey{hello.job(), hello.step(), hello.restarts()}, hello.node());
  peer->step = steps_.agent_came(
      hello, [connection = peer->connection](const net::ToPeer& out) { connection->send(out.SerializeAsString()); },
      why);
  if (!peer->step) return drop(peer, why);
  peer->node = hello.node();
}

// A connection that a new one of the same agent replaces must not take the new one with it when it goes.
void Server::replace(const StepKey& key, const std::string& node) {
  const auto step = steps_.all().find(key);
  if (step == steps_.all().end() || !step->second->agents.contains(node)) return;
  const auto old = std::find_if(peers_.begin(), peers_.end(), [&](const PeerPointer& other) {
    return other->step && other->node == node && other->step->facts.key == key;
  });
  if (old != peers_.end()) drop(PeerPointer(*old), "its agent connected again");
}

void Server::command(const PeerPointer& peer, const net::Request& request) {
  // An agent's credential is root's, and it is not root that asks.
  if (peer->step || peer->asked || peer->connection->agent()) return drop(peer, "asks out of turn");
  peer->asked = true;
  requests_.handle(peer->connection->uid(), request, [this, peer](const net::Reply& reply) {
    net::ToPeer message;
    *message.mutable_reply() = reply;
    peer->connection->send(message.SerializeAsString());
    peer->asked = false;
    expect_word(peer);
  });
}

// Into the log, as often as it has room for what users bring about.
void Server::complain(const std::string& text) {
  const uint64_t lost = complaints_.lost();
  if (!complaints_.take(text.size(), LogBudget::Clock::now())) return;
  if (lost > 0) spdlog::warn("{} lines like this one were left out", lost);
  spdlog::warn("{}", text);
}

void Server::drop(const PeerPointer& peer, const std::string& why) {
  complain(
      fmt::format("{} (user {}): {}", peer->connection->address(), static_cast<int64_t>(peer->connection->uid()), why));
  peer->connection->close();
  gone(peer, why);
}

void Server::known(const PeerPointer& peer) {
  const auto found = unknown_.find(peer->unknown);
  if (found != unknown_.end()) found->second.erase(peer->place);
  if (found != unknown_.end() && found->second.empty()) unknown_.erase(found);
  peer->unknown.clear();
}

void Server::gone(const PeerPointer& peer, const std::string& why) {
  if (!peer->unknown.empty()) known(peer);
  peer->gone = true;
  peer->silent.cancel();
  if (peer->step) {
    spdlog::debug("agent on {}: {}", peer->node, why);
    const auto step = std::move(peer->step);
    peer->step.reset();
    try {
      steps_.agent_left(step, peer->node, why);
    } catch (const Error& error) {
      spdlog::error("{}", error.what());
    }
  } else {
    spdlog::debug("{}: {}", peer->connection->address(), why);
  }
  peers_.remove(peer);
}

}  // namespace icp
