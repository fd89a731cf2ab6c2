// SPDX-License-Identifier: GPL-2.0-or-later
// The agent's connection to icpctld: kept up in a thread of its own, so that the thread that ptraces can wait for the
// coordinator's word while its processes are stopped, and so that a coordinator that is away delays nobody.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "coordinator/config.h"
#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/coordinator.pb.h"
#include "engine/base/mutex.h"

namespace icp {

// Whom the coordinator must run as. Throws Error (kUsage) when coordinator_user does not exist.
uid_t uid_of_coordinator(const Config& config);

class CoordinatorLink {
 public:
  // Called in the agent's thread (posted to its io_context).
  struct Events {
    std::function<void(const net::BeginRound&)> begin;
    // The connection is there, or is not: `why` is empty when it is.
    std::function<void(const std::string& why)> changed;
    // No versions are taken, for something that other nodes lack.
    std::function<void(const std::string& why)> missed;
    // A line for the user.
    std::function<void(const std::string& text)> notice;
  };

  // Starts connecting. `agent` must outlive this. Throws Error (kUsage) when coordinator_user does not exist.
  CoordinatorLink(const Config& config, net::AgentHello hello, boost::asio::io_context& agent, Events events);
  ~CoordinatorLink();

  // All of these are thread-safe.
  // True while icpctld is there and decides when versions are taken.
  bool scheduled() const;
  // What is said of the step at the next connection.
  void set_hello(const net::AgentHello& hello);
  // Dropped when nobody is there.
  void say(const net::ToCoordinator& message);
  // Blocks until the coordinator lets the round go on with `phase`. Throws Error (kBusy): given up by the coordinator,
  // connection lost, or nothing heard for `timeout`. `wanted`, if not empty, is asked meanwhile and may throw to end
  // it: a coordinator that hangs must not keep the agent of a step that has ended.
  using Wanted = std::function<void()>;
  net::Go wait_go(uint64_t round, net::Phase phase, std::chrono::milliseconds timeout, const Wanted& wanted = {});
  // The coordinator has given the round up, or has begun another last one (BeginRound.last).
  bool given_up(uint64_t round) const;
  // The other ends of those the message names, as far as they are on other nodes of the round. Blocks and throws as
  // above.
  net::Survey survey(const net::Survey& message, std::chrono::milliseconds timeout, const Wanted& wanted = {});
  // Blocks until icpctld is there, at most so long. False: it is not.
  bool wait_scheduled(std::chrono::milliseconds timeout);
  // Says that this agent has come so far with a restart, and blocks until all have, or the connection does not come
  // within `timeout`. Throws Error: kBusy; kImage when all are to try an older version. `wanted`: as in wait_go().
  net::RestartGo restart(const net::RestartReady& message, std::chrono::milliseconds timeout, const Wanted& wanted);

 private:
  void connect();
  void retry(const std::string& why);
  void opened(net::Connection::Socket socket);
  void received(const std::string& payload);
  void listen_for_silence();
  void tell_agent(const std::string& why);
  template <typename There>
  bool wait_looking(std::chrono::steady_clock::time_point until, const Wanted& wanted, There there)
      ICP_REQUIRES(mutex_);
  template <typename There>
  void wait_in_round(uint64_t round, std::chrono::milliseconds timeout, const Wanted& wanted, There there)
      ICP_REQUIRES(mutex_);
  void leave(std::chrono::steady_clock::time_point latest);

  const std::vector<net::Endpoint> coordinators_;
  const net::MungeAuth munge_;
  uid_t server_ = 0;
  boost::asio::io_context& agent_;
  // Handlers that were posted to the agent's io_context may run when this is gone.
  std::shared_ptr<Events> events_;

  boost::asio::io_context io_{1};
  boost::asio::thread_pool pool_{1};
  boost::asio::ip::tcp::resolver resolver_{io_};
  boost::asio::ip::tcp::socket socket_{io_};
  boost::asio::steady_timer timer_{io_}, silence_{io_};
  net::Connection::Pointer connection_;
  size_t next_ = 0;  // of the coordinators
  std::chrono::milliseconds pause_{0};
  std::string told_ = "-";  // what tell_agent() said last

  mutable Mutex mutex_;
  Condition heard_;
  net::AgentHello hello_ ICP_GUARDED_BY(mutex_);
  bool scheduled_ ICP_GUARDED_BY(mutex_) = false;
  uint64_t round_ ICP_GUARDED_BY(mutex_) = 0;
  net::Go go_ ICP_GUARDED_BY(mutex_);
  std::optional<net::Survey> survey_ ICP_GUARDED_BY(mutex_);
  net::RestartGo restart_go_ ICP_GUARDED_BY(mutex_);
  uint64_t losses_ ICP_GUARDED_BY(mutex_) = 0;   // of the connection
  std::string given_up_ ICP_GUARDED_BY(mutex_);  // not empty: why the round is over
  bool aborted_ ICP_GUARDED_BY(mutex_) = false;  // by the coordinator
  bool last_ ICP_GUARDED_BY(mutex_) = false;     // BeginRound.last

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace icp
