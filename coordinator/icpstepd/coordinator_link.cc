// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/coordinator_link.h"

#include <pwd.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <random>

#include "coordinator/icpstepd/agent_broker.h"
#include "engine/base/error.h"

namespace icp {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using std::chrono::milliseconds;

// A handshake may wait its turn at a munged to which a thousand others came in the same moment; nobody waits for it
// here.
constexpr milliseconds kConnectTimeout{5'000}, kHandshakeTimeout{30'000};
constexpr milliseconds kFirstPause{200}, kLongestPause{10'000}, kLastWords{200}, kLook{500};

}  // namespace

uid_t uid_of_coordinator(const Config& config) {
  passwd entry{};
  passwd* found = nullptr;
  char buffer[4096];
  const std::string& user = config.coordinator_user;
  if (::getpwnam_r(user.c_str(), &entry, buffer, sizeof buffer, &found) != 0 || found == nullptr) {
    throw_error(ErrorKind::kUsage, "coordinator_user in icp.yaml: there is no user {}", user);
  }
  return entry.pw_uid;
}

CoordinatorLink::CoordinatorLink(const Config& config, net::AgentHello hello, asio::io_context& agent, Events events)
    : coordinators_(config.coordinators),
      munge_(config.munge_socket, agent_credential),
      server_(uid_of_coordinator(config)),
      agent_(agent),
      events_(std::make_shared<Events>(std::move(events))),
      hello_(std::move(hello)) {
  asio::post(io_, [this] { connect(); });
  // Signals are the agent's thread's.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] {
    const auto guard = asio::make_work_guard(io_);
    io_.run();
  });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

CoordinatorLink::~CoordinatorLink() {
  *events_ = {};
  asio::post(io_, [this] {
    if (connection_) connection_->finish();
    leave(std::chrono::steady_clock::now() + kLastWords);
  });
  thread_.join();
  if (connection_) connection_->close();
}

// What was said last still goes out, unless nobody reads it.
void CoordinatorLink::leave(std::chrono::steady_clock::time_point latest) {
  if (!connection_ || connection_->queued() == 0 || std::chrono::steady_clock::now() > latest) return io_.stop();
  timer_.expires_after(milliseconds(1));
  timer_.async_wait([this, latest](error_code) { leave(latest); });
}

void CoordinatorLink::connect() {
  const net::Endpoint& endpoint = coordinators_[next_++ % coordinators_.size()];
  timer_.expires_after(kConnectTimeout);
  timer_.async_wait([this](error_code error) {
    if (error) return;
    resolver_.cancel();
    error_code ignored;
    socket_.close(ignored);
  });
  const std::string name = to_text(endpoint);
  resolver_.async_resolve(
      endpoint.host, std::to_string(endpoint.port), [this, name](error_code error, const auto& found) {
        if (error) return retry(fmt::format("{}: {}", name, error.message()));
        asio::async_connect(socket_, found, [this, name](error_code failed, const asio::ip::tcp::endpoint&) {
          if (failed) return retry(fmt::format("{}: {}", name, failed.message()));
          timer_.cancel();
          opened(std::move(socket_));
          socket_ = asio::ip::tcp::socket(io_);
        });
      });
}

void CoordinatorLink::opened(net::Connection::Socket socket) {
  net::Connection::Handlers handlers;
  handlers.ready = [this] {
    listen_for_silence();
    net::ToCoordinator message;
    {
      const MutexLock lock(mutex_);
      *message.mutable_agent() = hello_;
    }
    connection_->send(message.SerializeAsString());
  };
  handlers.received = [this](const std::string& payload) { received(payload); };
  handlers.closed = [this, name = to_text(coordinators_[(next_ - 1) % coordinators_.size()])](const std::string& why) {
    retry(fmt::format("{}: {}", name, why));
  };
  connection_ =
      net::Connection::open(std::move(socket), munge_, pool_, server_, kHandshakeTimeout, std::move(handlers));
}

void CoordinatorLink::retry(const std::string& why) {
  timer_.cancel();
  silence_.cancel();
  connection_.reset();
  {
    const MutexLock lock(mutex_);
    scheduled_ = false;
    losses_++;
    if (round_ != 0) given_up_ = "the connection to the coordinator is lost";
  }
  heard_.notify_all();
  tell_agent(why);
  // A thousand agents that lost the same coordinator do not come back in the same moment.
  pause_ = std::clamp(pause_ * 2, kFirstPause, kLongestPause);
  static thread_local std::minstd_rand random{std::random_device{}()};
  timer_.expires_after(pause_ / 2 + milliseconds(std::uniform_int_distribution<int64_t>(0, pause_.count())(random)));
  timer_.async_wait([this](error_code error) {
    if (!error) connect();
  });
}

void CoordinatorLink::listen_for_silence() {
  silence_.expires_after(net::kSilence);
  silence_.async_wait([this, connection = connection_](error_code error) {
    if (error || !connection || connection != connection_) return;
    if (connection->unread()) return listen_for_silence();  // it was this process that did not listen
    connection->close();
    retry(fmt::format("{}: it has said nothing for {} s", to_text(coordinators_[(next_ - 1) % coordinators_.size()]),
                      std::chrono::duration_cast<std::chrono::seconds>(net::kSilence).count()));
  });
}

void CoordinatorLink::tell_agent(const std::string& why) {
  // Each attempt fails with much the same words: the agent hears of the first.
  if (told_.empty() == why.empty() && told_ != "-") return;
  told_ = why;
  asio::post(agent_, [events = events_, why] {
    if (events->changed) events->changed(why);
  });
}

void CoordinatorLink::received(const std::string& payload) {
  listen_for_silence();
  net::ToPeer message;
  if (!message.ParseFromString(payload)) {
    spdlog::warn("icpctld sent something that is no message");
    return;
  }
  {
    const MutexLock lock(mutex_);
    if (message.has_welcome()) scheduled_ = message.welcome().scheduled();
    if (message.has_notice()) {
      asio::post(agent_, [events = events_, text = message.notice().text()] {
        if (events->notice) events->notice(text);
      });
    }
    if (message.has_begin()) {
      round_ = message.begin().round();
      go_.Clear();
      go_.set_phase(net::PREPARE);
      survey_.reset();
      given_up_.clear();
      aborted_ = false;
      last_ = message.begin().last();
    }
    if (message.has_go() && message.go().round() == round_ && message.go().phase() > go_.phase()) go_ = message.go();
    if (message.has_survey() && message.survey().round() == round_) survey_ = message.survey();
    if (message.has_restart_go()) restart_go_ = message.restart_go();
    if (message.has_abort() && message.abort().round() == round_) {
      given_up_ = message.abort().reason().empty() ? "given up by the coordinator" : message.abort().reason();
      aborted_ = true;
    }
  }
  heard_.notify_all();
  if (message.has_welcome()) {
    pause_ = milliseconds(0);
    tell_agent("");
  }
  if (message.has_abort() && message.abort().round() == 0) {
    asio::post(agent_, [events = events_, why = message.abort().reason()] {
      if (events->missed) events->missed(why);
    });
  }
  if (message.has_begin()) {
    asio::post(agent_, [events = events_, begin = message.begin()] {
      if (events->begin) events->begin(begin);
    });
  }
}

bool CoordinatorLink::scheduled() const {
  const MutexLock lock(mutex_);
  return scheduled_;
}

bool CoordinatorLink::given_up(uint64_t round) const {
  const MutexLock lock(mutex_);
  return round_ == round ? aborted_ : last_;
}

void CoordinatorLink::set_hello(const net::AgentHello& hello) {
  const MutexLock lock(mutex_);
  hello_ = hello;
}

void CoordinatorLink::say(const net::ToCoordinator& message) {
  asio::post(io_, [this, payload = message.SerializeAsString()] {
    if (connection_) connection_->send(payload);
  });
}

// Waits until `there()` holds, and looks now and then whether it is still wanted. False: too late.
template <typename There>
bool CoordinatorLink::wait_looking(std::chrono::steady_clock::time_point until, const Wanted& wanted, There there) {
  while (!there()) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= until) return false;
    heard_.wait_until(mutex_, wanted ? std::min(until, now + kLook) : until);
    if (!wanted || there()) continue;
    mutex_.unlock();
    try {
      wanted();
    } catch (...) {
      mutex_.lock();  // the caller lets it go
      throw;
    }
    mutex_.lock();
  }
  return true;
}

// The same in a round.
template <typename There>
void CoordinatorLink::wait_in_round(uint64_t round, milliseconds timeout, const Wanted& wanted, There there) {
  const bool heard = wait_looking(std::chrono::steady_clock::now() + timeout, wanted, [&]() ICP_REQUIRES(mutex_) {
    return round_ != round || !given_up_.empty() || there();
  });
  if (round_ != round) throw_error(ErrorKind::kBusy, "the coordinator has gone on to another version");
  if (!given_up_.empty()) throw_error(ErrorKind::kBusy, "{}", given_up_);
  if (!heard) throw_error(ErrorKind::kBusy, "the other nodes were not ready within {} ms", timeout.count());
}

net::Go CoordinatorLink::wait_go(uint64_t round, net::Phase phase, milliseconds timeout, const Wanted& wanted) {
  const MutexLock lock(mutex_);
  wait_in_round(round, timeout, wanted, [&]() ICP_REQUIRES(mutex_) { return go_.phase() >= phase; });
  return go_;
}

net::Survey CoordinatorLink::survey(const net::Survey& message, milliseconds timeout, const Wanted& wanted) {
  const MutexLock lock(mutex_);
  survey_.reset();
  net::ToCoordinator out;
  *out.mutable_survey() = message;
  say(out);
  wait_in_round(message.round(), timeout, wanted, [&]() ICP_REQUIRES(mutex_) { return survey_.has_value(); });
  return *survey_;
}

bool CoordinatorLink::wait_scheduled(milliseconds timeout) {
  const MutexLock lock(mutex_);
  return wait_looking(std::chrono::steady_clock::now() + timeout, {},
                      [&]() ICP_REQUIRES(mutex_) { return scheduled_; });
}

net::RestartGo CoordinatorLink::restart(const net::RestartReady& message, milliseconds timeout, const Wanted& wanted) {
  const auto until = std::chrono::steady_clock::now() + timeout;
  const MutexLock lock(mutex_);
  if (!wait_looking(until, wanted, [&]() ICP_REQUIRES(mutex_) { return scheduled_; })) {
    throw_error(ErrorKind::kBusy, "the step has tasks on several nodes, and the coordinator cannot be reached");
  }
  const uint64_t losses = losses_;
  net::ToCoordinator out;
  *out.mutable_ready() = message;
  say(out);
  if (!message.error().empty()) return {};
  const bool heard = wait_looking(until, wanted, [&]() ICP_REQUIRES(mutex_) {
    if (losses_ != losses) return true;
    return restart_go_.attempt() == message.attempt() &&
           (!restart_go_.error().empty() || restart_go_.phase() >= message.phase());
  });
  if (losses_ != losses) throw_error(ErrorKind::kBusy, "the connection to the coordinator is lost");
  if (heard && !restart_go_.error().empty())
    throw_error(restart_go_.again() ? ErrorKind::kImage : ErrorKind::kBusy, "{}", restart_go_.error());
  if (!heard) throw_error(ErrorKind::kBusy, "the other nodes were not ready within {} s", timeout.count() / 1000);
  return restart_go_;
}

}  // namespace icp
