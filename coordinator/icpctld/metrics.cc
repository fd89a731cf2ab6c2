// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/metrics.h"

#include <memory>

#include "coordinator/icpctld/http_exchange.h"

namespace icp {
namespace {

using boost::asio::ip::tcp;

constexpr int kMostReaders = 16;

class Reading final : public HttpExchange<tcp> {
 public:
  Reading(tcp::socket socket, const std::function<std::string()>& text, std::function<void()> ended)
      : HttpExchange(std::move(socket)), text_(text), ended_(std::move(ended)) {}
  ~Reading() override { ended_(); }

 private:
  void asked(const Request& request) override {
    const bool known = request.target() == "/metrics" && request.method() == boost::beast::http::verb::get;
    answer(known ? 200 : 404, "text/plain; version=0.0.4", known ? text_() : "see /metrics\n");
  }

  const std::function<std::string()>& text_;
  std::function<void()> ended_;
};

}  // namespace

Metrics::Metrics(boost::asio::io_context& io, const net::Endpoint& endpoint, std::function<std::string()> text)
    : text_(std::move(text)), listener_(io, [this](tcp::socket socket) { came(std::move(socket)); }) {
  listen_at(listener_, io, endpoint, "metrics", kMostReaders);
  listener_.start();
}

void Metrics::came(tcp::socket socket) {
  if (open_ >= kMostReaders) return;
  open_++;
  std::make_shared<Reading>(std::move(socket), text_, [this] { open_--; })->begin();
}

}  // namespace icp
