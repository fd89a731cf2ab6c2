// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/rest.h"

#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <optional>

#include "coordinator/icpctld/http_exchange.h"
#include "coordinator/icpctld/rest_request.h"
#include "engine/base/error.h"

namespace icp {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Local = asio::local::stream_protocol;

constexpr int kMostConnections = 128, kMostOfOneUser = 16;
constexpr const char* kToken = "X-SLURM-USER-TOKEN";  // slurmrestd's name for it
constexpr const char* kType = "application/json";

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

template <typename Protocol>
class RestExchange final : public HttpExchange<Protocol> {
 public:
  RestExchange(asio::basic_stream_socket<Protocol> socket, std::shared_ptr<Rest::Shared> shared)
      : HttpExchange<Protocol>(std::move(socket)), uid_(peer_of(this->socket())), shared_(std::move(shared)) {
    shared_->open++;
  }
  ~RestExchange() override {
    shared_->open--;
    if (counted_ && --shared_->of_user[*uid_] == 0) shared_->of_user.erase(*uid_);
  }

 private:
  using Request = typename HttpExchange<Protocol>::Request;
  std::shared_ptr<RestExchange> self() { return std::static_pointer_cast<RestExchange>(this->shared_from_this()); }

  void asked(const Request& request) override {
    if (uid_ || std::is_same_v<Protocol, Local>) return carry_out(request);
    const auto token = request.find(kToken);
    if (token == request.end()) return refuse(401, std::string(kToken) + " is missing: what munge -n prints");
    asio::post(shared_->pool, [self = self(), &request, text = std::string(plain(token->value()))] {
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
      asio::post(self->shared_->io, [self, &request, uid, why] {
        if (!uid) return self->refuse(401, why);
        self->uid_ = uid;
        self->carry_out(request);
      });
    });
  }

  void carry_out(const Request& request) {
    if (!uid_) return refuse(401, "the kernel does not say who asks");
    counted_ = true;
    if (++shared_->of_user[*uid_] > kMostOfOneUser) return refuse(429, "you have too many requests under way");
    try {
      request_ = parse_rest(plain(request.method_string()), plain(request.target()), request.body());
    } catch (const RestError& error) {
      return refuse(error.status, error.text);
    }
    shared_->requests.handle(*uid_, request_, [self = self()](const net::Reply& reply) {
      asio::post(self->shared_->pool, [self, reply] {
        std::string body = rest_body(self->request_, reply);
        asio::post(self->shared_->io, [self, status = rest_status(reply), body = std::move(body)]() mutable {
          self->answer(status, kType, std::move(body));
        });
      });
    });
  }

  void refuse(unsigned status, const std::string& why) {
    this->answer(status, kType, rest_body(RestError{status, why}));
  }

  std::optional<uid_t> uid_;
  std::shared_ptr<Rest::Shared> shared_;
  bool counted_ = false;
  net::Request request_;
};

void listen_at(asio::basic_socket_acceptor<Local>& acceptor, const std::string& path) {
  struct stat facts {};
  if (::lstat(path.c_str(), &facts) == 0 && S_ISSOCK(facts.st_mode)) ::unlink(path.c_str());
  boost::system::error_code error;
  acceptor.open(Local(), error);
  if (!error) acceptor.bind(Local::endpoint(path), error);
  if (!error && ::chmod(path.c_str(), 0666) != 0)
    error = boost::system::error_code(errno, boost::system::system_category());
  if (!error) acceptor.listen(kMostConnections, error);
  if (error) throw_error(ErrorKind::kSystem, "rest: cannot listen at {}: {}", path, error.message());
}

template <typename Protocol>
auto taker(const std::shared_ptr<Rest::Shared>& shared) {
  return [shared](asio::basic_stream_socket<Protocol> socket) {
    if (shared->open < kMostConnections) std::make_shared<RestExchange<Protocol>>(std::move(socket), shared)->begin();
  };
}

}  // namespace

Rest::Rest(asio::io_context& io, const Config& config, Requests& requests)
    : path_(config.rest),
      shared_(new Shared(io, requests, config.munge_socket)),
      local_(io, taker<Local>(shared_)),
      remote_(io, taker<tcp>(shared_)) {
  if (!config.rest.empty()) {
    listen_at(local_.acceptor(), config.rest);
    local_.start();
  }
  if (config.rest_listen) {
    icp::listen_at(remote_, io, *config.rest_listen, "rest_listen", kMostConnections);
    remote_.start();
  }
}

Rest::~Rest() {
  shared_->pool.join();
  if (!path_.empty()) ::unlink(path_.c_str());
}

}  // namespace icp
