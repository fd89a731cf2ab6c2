// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/listener.h"

#include "engine/base/error.h"

namespace icp {

void listen_at(Listener<boost::asio::ip::tcp>& listener, boost::asio::io_context& io, const net::Endpoint& endpoint,
               const char* key, int backlog) {
  using boost::asio::ip::tcp;
  const bool everywhere = endpoint.host.empty();
  tcp::endpoint where(tcp::v6(), endpoint.port);
  boost::system::error_code error;
  if (!everywhere) {
    tcp::resolver resolver(io);
    const auto found = resolver.resolve(endpoint.host, std::to_string(endpoint.port), tcp::resolver::passive, error);
    if (error || found.empty())
      throw_error(ErrorKind::kUsage, "{} in icp.yaml: {}: {}", key, endpoint.host,
                  error ? error.message() : "no address");
    where = *found.begin();
  }
  auto& acceptor = listener.acceptor();
  acceptor.open(where.protocol(), error);
  if (error && everywhere) {  // no IPv6 on this machine
    where = tcp::endpoint(tcp::v4(), endpoint.port);
    acceptor.open(where.protocol(), error);
  }
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error && everywhere && where.protocol() == tcp::v6())
    acceptor.set_option(boost::asio::ip::v6_only(false), error);
  if (!error) acceptor.bind(where, error);
  if (!error) acceptor.listen(backlog, error);
  if (error) throw_error(ErrorKind::kSystem, "{}: cannot listen at {}: {}", key, to_text(endpoint), error.message());
}

}  // namespace icp
