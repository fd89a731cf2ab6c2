// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/metrics.h"

#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <memory>

#include "engine/base/error.h"

namespace icp {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

constexpr int kMostConnections = 16;
constexpr std::chrono::seconds kTimeout(5);
constexpr uint64_t kMostBytes = 16 << 10;  // of a request

// One request, one answer. Keeps itself alive.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(tcp::socket socket, const std::function<std::string()>& text, std::function<void()> ended)
      : stream_(std::move(socket)), text_(text), ended_(std::move(ended)) {}
  ~Exchange() { ended_(); }

  void begin() {
    parser_.header_limit(kMostBytes);
    parser_.body_limit(kMostBytes);
    stream_.expires_after(kTimeout);
    http::async_read(stream_, buffer_, parser_, [self = shared_from_this()](beast::error_code error, size_t) {
      if (!error) self->answer();
    });
  }

 private:
  void answer() {
    const auto& request = parser_.get();
    const bool known = request.target() == "/metrics" && request.method() == http::verb::get;
    response_.result(known ? http::status::ok : http::status::not_found);
    response_.set(http::field::content_type, "text/plain; version=0.0.4");
    response_.body() = known ? text_() : "see /metrics\n";
    response_.keep_alive(false);
    response_.prepare_payload();
    http::async_write(stream_, response_, [self = shared_from_this()](beast::error_code, size_t) {
      beast::error_code ignored;
      self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    });
  }

  beast::tcp_stream stream_;
  const std::function<std::string()>& text_;
  std::function<void()> ended_;
  beast::flat_buffer buffer_;
  http::request_parser<http::string_body> parser_;
  http::response<http::string_body> response_;
};

}  // namespace

Metrics::Metrics(asio::io_context& io, const net::Endpoint& endpoint, std::function<std::string()> text)
    : acceptor_(io), again_(io), text_(std::move(text)) {
  beast::error_code error;
  tcp::resolver resolver(io);
  const auto found =
      resolver.resolve(endpoint.host.empty() ? "::" : endpoint.host, std::to_string(endpoint.port), error);
  if (!error) acceptor_.open(found.begin()->endpoint().protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(found.begin()->endpoint(), error);
  if (!error) acceptor_.listen(kMostConnections, error);
  if (error) throw_error(ErrorKind::kSystem, "metrics: cannot listen at {}: {}", to_text(endpoint), error.message());
  accept();
}

void Metrics::accept() {
  acceptor_.async_accept([this](beast::error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (!error && open_ < kMostConnections) {
      open_++;
      std::make_shared<Exchange>(std::move(socket), text_, [this] { open_--; })->begin();
    }
    if (!error) return accept();
    // No descriptor left, as a rule.
    again_.expires_after(std::chrono::milliseconds(200));
    again_.async_wait([this](beast::error_code stopped) {
      if (!stopped) accept();
    });
  });
}

}  // namespace icp
