// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/coordinator_client.h"

#include <optional>

#include "coordinator/protocol/connection.h"
#include "engine/base/error.h"

namespace icp::net {
namespace {

namespace asio = boost::asio;

// One address. Nothing when it could not be reached, with `why`.
std::optional<Reply> ask_one(const ClientSettings& settings, const Endpoint& endpoint, const Request& request,
                             std::chrono::milliseconds timeout, std::string& why) {
  asio::io_context io(1);
  asio::thread_pool pool(1);
  asio::ip::tcp::resolver resolver(io);
  boost::system::error_code error;
  const auto addresses = resolver.resolve(endpoint.host, std::to_string(endpoint.port), error);
  if (error) {
    why = error.message();
    return std::nullopt;
  }
  asio::ip::tcp::socket socket(io);
  bool connected = false;
  why = "no answer in time";
  asio::async_connect(socket, addresses, [&](boost::system::error_code failed, const asio::ip::tcp::endpoint&) {
    connected = !failed;
    if (failed) why = failed.message();
  });
  io.run_for(settings.connect_timeout);
  if (!connected) {
    socket.close(error);
    io.restart();
    io.run();  // the handler refers to what is here
    return std::nullopt;
  }

  std::optional<Reply> reply;
  std::string lost;
  Connection::Pointer connection;
  ToCoordinator message;
  *message.mutable_request() = request;
  Connection::Handlers handlers;
  handlers.ready = [&] { connection->send(message.SerializeAsString()); };
  handlers.received = [&](const std::string& payload) {
    ToPeer answer;
    if (!answer.ParseFromString(payload) || !answer.has_reply()) {
      lost = "the answer makes no sense";
    } else {
      reply = answer.reply();
    }
    connection->close();
  };
  handlers.closed = [&](const std::string& reason) { lost = reason; };
  connection = Connection::open(std::move(socket), MungeAuth(settings.munge_socket), pool, settings.coordinator_uid,
                                settings.connect_timeout, std::move(handlers));
  io.restart();
  io.run_for(timeout);
  const bool in_time = reply || !lost.empty();
  connection->close();
  pool.join();
  io.restart();
  io.run();
  if (reply) return reply;
  throw_error(ErrorKind::kPermission, "icpctld at {}: {}", to_text(endpoint), in_time ? lost : "no answer in time");
}

}  // namespace

Reply ask(const ClientSettings& settings, const Request& request, std::chrono::milliseconds timeout) {
  std::string tried;
  for (const Endpoint& endpoint : settings.coordinators) {
    std::string why;
    if (const auto reply = ask_one(settings, endpoint, request, timeout, why)) return *reply;
    tried += fmt::format("{}{}: {}", tried.empty() ? "" : ", ", to_text(endpoint), why);
  }
  if (tried.empty()) {
    throw Error(ErrorKind::kUsage, "no coordinator is configured", 0, "set coordinator: in icp.yaml");
  }
  throw Error(ErrorKind::kSystem, fmt::format("cannot reach icpctld ({})", tried), 0, "is icpctld running?");
}

}  // namespace icp::net
