// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <sstream>

#include "engine/base/error.h"

namespace icp::net {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr std::string_view kMagic = "SICP";
constexpr std::string_view kClientMark = "slurm-icp client 1", kServerMark = "slurm-icp server 1";
constexpr size_t kHeader = 8;
constexpr const char* kNotBelieved =
    "the coordinator closed the connection instead of answering; it says why in its log: most likely its munged has "
    "another key, or its clock another time";
constexpr size_t kReadChunk = 16 << 10;

std::string text_of(const Key& key) { return {reinterpret_cast<const char*>(key.data()), key.size()}; }

// A peer whose machine or network is gone is noticed within half a minute, also when nothing is said; what is back
// within ten seconds was never away.
void watch_peer(asio::ip::tcp::socket& socket) {
  const int fd = socket.native_handle();
  const int on = 1, idle = 10, every = 5, tries = 3;
  const unsigned unanswered_ms = 20'000;
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &tries, sizeof tries);
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

std::string AgentName::text() const { return fmt::format("agent {} {} {} {}", job, step, restarts, uid); }

std::optional<AgentName> AgentName::parse(const std::string& text) {
  AgentName name;
  std::istringstream words(text);
  std::string mark;
  if (!(words >> mark >> name.job >> name.step >> name.restarts >> name.uid) || name.text() != text) return {};
  return name;
}

bool is_client_payload(const std::string& payload) {
  return payload.size() == kClientMark.size() + kKeyBytes && payload.starts_with(kClientMark);
}

Connection::Connection(Socket socket, const MungeAuth& munge, asio::thread_pool& pool, bool server_side, uid_t server,
                       std::chrono::milliseconds timeout, Handlers handlers)
    : socket_(std::move(socket)),
      munge_(munge),
      pool_(pool),
      timer_(socket_.get_executor()),
      server_side_(server_side),
      server_(server),
      timeout_(timeout),
      handlers_(std::move(handlers)) {
  error_code error;
  const auto end = socket_.remote_endpoint(error);
  address_ = error ? "?" : fmt::format("{}:{}", end.address().to_string(), end.port());
  watch_peer(socket_);
}

Connection::Pointer Connection::accept(Socket socket, const MungeAuth& munge, asio::thread_pool& pool,
                                       std::chrono::milliseconds handshake_timeout, Handlers handlers) {
  Pointer connection(new Connection(std::move(socket), munge, pool, true, 0, handshake_timeout, std::move(handlers)));
  connection->begin();
  return connection;
}

Connection::Pointer Connection::open(Socket socket, const MungeAuth& munge, asio::thread_pool& pool, uid_t server,
                                     std::chrono::milliseconds handshake_timeout, Handlers handlers) {
  Pointer connection(
      new Connection(std::move(socket), munge, pool, false, server, handshake_timeout, std::move(handlers)));
  connection->begin();
  return connection;
}

bool Connection::unread() const {
  error_code error;
  return !closed_ && socket_.available(error) > 0 && !error;
}

// From now on the peer has the time-out for its step of the handshake.
void Connection::expect(const char* late) {
  timer_.expires_after(timeout_);
  timer_.async_wait([self = shared_from_this(), late, step = ++step_](error_code error) {
    // Its end may have been on its way here when the step was done after all.
    if (!error && step == self->step_) self->fail(late);
  });
}

void Connection::in_time() {
  step_++;
  timer_.cancel();
}

void Connection::begin() {
  expect(server_side_ ? "says nothing" : "no answer to the handshake in time");
  if (server_side_) {
    read_credential();
  } else {
    send_credential();
  }
}

// Does `work` in the pool and `then` with its result here. What work throws ends the connection.
template <typename Work, typename Then>
void Connection::in_pool(Work work, Then then) {
  asio::post(pool_, [self = shared_from_this(), work = std::move(work), then = std::move(then)]() mutable {
    std::string why;
    decltype(work()) result{};
    try {
      result = work();
    } catch (const Error& error) {
      why = with_hint(error);
    }
    asio::post(self->socket_.get_executor(), [self, why, result = std::move(result), then = std::move(then)]() mutable {
      if (self->closed_) return;
      if (!why.empty()) return self->fail(why);
      then(std::move(result));
    });
  });
}

void Connection::send_credential() {
  std::string payload;
  try {
    if (server_side_) {
      server_half_ = random_key();
      payload = std::string(kServerMark) + text_of(digest(client_half_)) + text_of(server_half_);
    } else {
      client_half_ = random_key();
      payload = std::string(kClientMark) + text_of(client_half_);
    }
  } catch (const Error& error) {
    return fail(error.what());
  }
  // Root's word names an agent; the agent itself, which reads the answer, is its user.
  const uid_t reader = !server_side_ ? server_ : agent_ ? agent_->uid : uid_;
  in_pool([munge = munge_, payload, reader] { return munge.encode(payload, reader); },
          [this](const std::string& credential) {
            auto message = std::make_shared<std::string>(kMagic);
            for (int shift = 24; shift >= 0; shift -= 8)
              message->push_back(static_cast<char>(credential.size() >> shift & 0xff));
            *message += credential;
            if (server_side_) expect("does not read the answer to its handshake");
            asio::async_write(socket_, asio::buffer(*message),
                              [self = shared_from_this(), message](error_code error, size_t) {
                                if (self->closed_) return;
                                if (error) return self->fail(error.message());
                                if (self->server_side_) return self->keys_known();
                                self->read_credential();
                              });
          });
}

void Connection::read_credential() {
  incoming_.resize(kHeader);
  asio::async_read(socket_, asio::buffer(incoming_), [self = shared_from_this()](error_code error, size_t) {
    if (self->closed_) return;
    if (error == asio::error::eof && !self->server_side_) return self->fail(kNotBelieved);
    if (error) return self->fail(error.message());
    size_t length = 0;
    for (size_t i = kMagic.size(); i < kHeader; i++)
      length = length << 8 | static_cast<unsigned char>(self->incoming_[i]);
    if (!self->incoming_.starts_with(kMagic) || length == 0 || length > kMaxCredential) {
      return self->fail("this is not the slurm-icp protocol");
    }
    self->incoming_.assign(length, '\0');
    asio::async_read(self->socket_, asio::buffer(self->incoming_), [self](error_code read_error, size_t) {
      if (self->closed_) return;
      if (read_error) return self->fail(read_error.message());
      self->credential_arrived(self->incoming_);
    });
  });
}

void Connection::credential_arrived(const std::string& text) {
  if (server_side_) in_time();  // it is munged's turn
  if (text.find('\0') != std::string::npos) return fail("this is not a MUNGE credential");
  in_pool([munge = munge_, text] { return munge.decode(text); },
          [this](const Credential& credential) {
            if (server_side_) {
              accept_peer(credential);
            } else {
              accept_server(credential);
            }
          });
}

void Connection::accept_peer(const Credential& credential) {
  const size_t own = kClientMark.size() + kKeyBytes;
  if (!is_client_payload(credential.payload.substr(0, own))) return fail("the credential was made for something else");
  if (credential.payload.size() > own) {
    agent_ = AgentName::parse(credential.payload.substr(own));
    if (!agent_ || credential.uid != 0) return fail("the credential was made for something else");
  }
  std::memcpy(client_half_.data(), credential.payload.data() + kClientMark.size(), kKeyBytes);
  uid_ = credential.uid;
  gid_ = credential.gid;
  send_credential();
}

void Connection::accept_server(const Credential& credential) {
  if (credential.uid != server_ && credential.uid != 0) {
    return fail(fmt::format("the coordinator at {} runs as user {}, not as {}; see coordinator_user in icp.yaml",
                            address_, credential.uid, server_));
  }
  if (credential.payload.size() != kServerMark.size() + 2 * kKeyBytes || !credential.payload.starts_with(kServerMark) ||
      credential.payload.compare(kServerMark.size(), kKeyBytes, text_of(digest(client_half_))) != 0) {
    return fail("the coordinator's credential is not an answer to ours");
  }
  std::memcpy(server_half_.data(), credential.payload.data() + kServerMark.size() + kKeyBytes, kKeyBytes);
  uid_ = credential.uid;
  gid_ = credential.gid;
  keys_known();
}

void Connection::keys_known() {
  in_time();
  const Key to_server = derive_key(client_half_, server_half_, "to coordinator");
  const Key to_client = derive_key(client_half_, server_half_, "to peer");
  writer_ = std::make_unique<FrameWriter>(server_side_ ? to_client : to_server);
  // Any user of the cluster may connect and ask; only agents have much to say.
  const size_t most = !server_side_ ? kMaxToPeer : uid_ == 0 || uid_ == ::geteuid() ? kMaxToCoordinator : kMaxFromUser;
  reader_ = std::make_unique<FrameReader>(server_side_ ? to_server : to_client, most);
  incoming_.assign(kReadChunk, '\0');
  read_frames();
  handlers_.ready();
}

void Connection::read_frames() {
  socket_.async_read_some(asio::buffer(incoming_), [self = shared_from_this()](error_code error, size_t length) {
    if (self->closed_) return;
    if (error) return self->fail(error == asio::error::eof ? "closed by the other side" : error.message());
    try {
      self->reader_->feed(std::string_view(self->incoming_).substr(0, length));
      while (auto payload = self->reader_->next()) {
        self->handlers_.received(std::move(*payload));
        if (self->closed_) return;
      }
    } catch (const Error& wrong) {
      return self->fail(wrong.what());
    }
    self->read_frames();
  });
}

void Connection::send(const std::string& payload) {
  if (closed_ || finishing_ || !writer_) return;
  if (queued_ + payload.size() > kMaxQueued) {
    // Later: who sends to many must not see one of them go meanwhile.
    finishing_ = true;
    return asio::post(socket_.get_executor(),
                      [self = shared_from_this()] { self->fail("does not read what is sent to it"); });
  }
  queue_.push_back(writer_->frame(payload));
  queued_ += queue_.back().size();
  if (!writing_) write_next();
}

void Connection::write_next() {
  if (queue_.empty()) {
    if (finishing_) close();
    return;
  }
  writing_ = true;
  asio::async_write(socket_, asio::buffer(queue_.front()), [self = shared_from_this()](error_code error, size_t) {
    self->writing_ = false;
    if (self->closed_) return;
    if (error) return self->fail(error.message());
    self->queued_ -= self->queue_.front().size();
    self->queue_.pop_front();
    self->write_next();
  });
}

void Connection::finish() {
  if (closed_) return;
  finishing_ = true;
  if (!writing_) write_next();
}

void Connection::close() {
  if (closed_) return;
  closed_ = true;
  error_code ignored;
  timer_.cancel();
  socket_.close(ignored);
  // The handlers may hold what holds this connection. One of them may be running: not destroyed under its feet.
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->handlers_ = {}; });
}

void Connection::fail(const std::string& why) {
  if (closed_) return;
  const auto closed = handlers_.closed;
  close();
  if (closed) closed(why);
}

}  // namespace icp::net
