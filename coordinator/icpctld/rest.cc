// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/rest.h"

#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <optional>

#include "coordinator/icpctld/rest_request.h"
#include "engine/base/error.h"

namespace icp {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using Local = asio::local::stream_protocol;

constexpr int kMostConnections = 128, kMostOfOneUser = 16;
constexpr std::chrono::seconds kTimeout(5);
constexpr uint64_t kMostBytes = 16 << 10;             // of a request
constexpr const char* kToken = "X-SLURM-USER-TOKEN";  // slurmrestd's name for it

// The other end of a local socket, at its connect(). Nobody: it cannot be told.
std::optional<uid_t> peer_of(Local::socket& socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return std::nullopt;
  return peer.uid;
}
std::optional<uid_t> peer_of(tcp::socket&) { return std::nullopt; }

// Beast's text, which is std's only in newer ones.
template <typename View>
std::string_view plain(View text) {
  return {text.data(), text.size()};
}

// One request, one answer. Keeps itself alive.
template <typename Protocol>
class Exchange : public std::enable_shared_from_this<Exchange<Protocol>> {
 public:
  using Socket = asio::basic_stream_socket<Protocol>;
  Exchange(Socket socket, std::shared_ptr<Rest::Shared> shared)
      : uid_(peer_of(socket)), stream_(std::move(socket)), shared_(std::move(shared)) {
    shared_->open++;
  }
  ~Exchange() {
    shared_->open--;
    if (counted_ && --shared_->of_user[*uid_] == 0) shared_->of_user.erase(*uid_);
  }

  void begin() {
    parser_.header_limit(kMostBytes);
    parser_.body_limit(kMostBytes);
    stream_.expires_after(kTimeout);
    http::async_read(stream_, buffer_, parser_, [self = this->shared_from_this()](beast::error_code error, size_t) {
      if (!error) self->who_asks();
    });
  }

 private:
  void who_asks() {
    stream_.expires_never();  // a version takes its time
    if (uid_ || std::is_same_v<Protocol, Local>) return ask();
    const auto token = parser_.get().find(kToken);
    if (token == parser_.get().end())
      return answer(401, rest_body(RestError{401, std::string(kToken) + " is missing: what munge -n prints"}));
    asio::post(shared_->pool, [self = this->shared_from_this(), text = std::string(plain(token->value()))] {
      std::optional<uid_t> uid;
      std::string why;
      try {
        // Those of other protocols that somebody has been sent, Slurm's and ours, hold something.
        const net::Credential credential = self->shared_->munge.decode(text);
        if (!credential.payload.empty())
          throw_error(ErrorKind::kPermission, "the credential was made for something else");
        uid = credential.uid;
      } catch (const Error& error) {
        why = error.what();
      }
      asio::post(self->shared_->io, [self, uid, why] {
        if (!uid) return self->answer(401, rest_body(RestError{401, why}));
        self->uid_ = uid;
        self->ask();
      });
    });
  }

  void ask() {
    if (!uid_) return answer(401, rest_body(RestError{401, "the kernel does not say who asks"}));
    counted_ = true;
    if (++shared_->of_user[*uid_] > kMostOfOneUser)
      return answer(429, rest_body(RestError{429, "you have too many requests under way"}));
    try {
      const auto& request = parser_.get();
      request_ = parse_rest(plain(request.method_string()), plain(request.target()), request.body());
    } catch (const RestError& error) {
      return answer(error.status, rest_body(error));
    }
    shared_->requests.handle(*uid_, request_, [self = this->shared_from_this()](const net::Reply& reply) {
      net::Reply told = reply;
      told.set_release(ICP_VERSION);
      told.set_now_unix_ms(static_cast<uint64_t>(
          std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
              .count()));
      asio::post(self->shared_->pool, [self, told = std::move(told)] {
        std::string body = rest_body(self->request_, told);
        asio::post(self->shared_->io, [self, status = rest_status(told), body = std::move(body)]() mutable {
          self->answer(status, std::move(body));
        });
      });
    });
  }

  void answer(unsigned status, std::string body) {
    stream_.expires_after(kTimeout);
    response_.result(status);
    response_.set(http::field::content_type, "application/json");
    response_.body() = std::move(body);
    response_.keep_alive(false);
    response_.prepare_payload();
    http::async_write(stream_, response_, [self = this->shared_from_this()](beast::error_code, size_t) {
      beast::error_code ignored;
      self->stream_.socket().shutdown(Socket::shutdown_send, ignored);
    });
  }

  std::optional<uid_t> uid_;
  beast::basic_stream<Protocol> stream_;
  std::shared_ptr<Rest::Shared> shared_;
  bool counted_ = false;
  net::Request request_;
  beast::flat_buffer buffer_;
  http::request_parser<http::string_body> parser_;
  http::response<http::string_body> response_;
};

void listen_at(asio::basic_socket_acceptor<Local>& acceptor, const std::string& path) {
  struct stat facts {};
  if (::lstat(path.c_str(), &facts) == 0 && S_ISSOCK(facts.st_mode)) ::unlink(path.c_str());
  beast::error_code error;
  acceptor.open(Local(), error);
  if (!error) acceptor.bind(Local::endpoint(path), error);
  if (!error && ::chmod(path.c_str(), 0666) != 0) error = beast::error_code(errno, boost::system::system_category());
  if (!error) acceptor.listen(kMostConnections, error);
  if (error) throw_error(ErrorKind::kSystem, "rest: cannot listen at {}: {}", path, error.message());
}

void listen_at(tcp::acceptor& acceptor, asio::io_context& io, const net::Endpoint& endpoint) {
  beast::error_code error;
  tcp::resolver resolver(io);
  const auto found =
      resolver.resolve(endpoint.host.empty() ? "::" : endpoint.host, std::to_string(endpoint.port), error);
  if (!error) acceptor.open(found.begin()->endpoint().protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(found.begin()->endpoint(), error);
  if (!error) acceptor.listen(kMostConnections, error);
  if (error)
    throw_error(ErrorKind::kSystem, "rest_listen: cannot listen at {}: {}", to_text(endpoint), error.message());
}

}  // namespace

Rest::Rest(asio::io_context& io, const Config& config, Requests& requests)
    : path_(config.rest), shared_(new Shared(io, requests, config.munge_socket)), again_(io) {
  if (!config.rest.empty()) {
    const auto acceptor = std::make_shared<asio::basic_socket_acceptor<Local>>(io);
    listen_at(*acceptor, config.rest);
    accept(acceptor);
  }
  if (config.rest_listen) {
    const auto acceptor = std::make_shared<tcp::acceptor>(io);
    listen_at(*acceptor, io, *config.rest_listen);
    accept(acceptor);
  }
}

Rest::~Rest() {
  shared_->pool.join();
  if (!path_.empty()) ::unlink(path_.c_str());
}

template <typename Protocol>
void Rest::accept(std::shared_ptr<asio::basic_socket_acceptor<Protocol>> acceptor) {
  acceptor->async_accept([this, acceptor](beast::error_code error, asio::basic_stream_socket<Protocol> socket) {
    if (error == asio::error::operation_aborted) return;
    if (!error && shared_->open < kMostConnections)
      std::make_shared<Exchange<Protocol>>(std::move(socket), shared_)->begin();
    if (!error) return accept(acceptor);
    // No descriptor left, as a rule.
    again_.expires_after(std::chrono::milliseconds(200));
    again_.async_wait([this, acceptor](beast::error_code stopped) {
      if (!stopped) accept(acceptor);
    });
  });
}

}  // namespace icp
