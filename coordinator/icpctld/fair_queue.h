// SPDX-License-Identifier: GPL-2.0-or-later
// What one user asks must not hold up another's question, nor a version.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "coordinator/protocol/asio.h"

namespace icp {

// A thread that works for many users: one piece of work of each in turn, however many one has waiting. All members are
// for the thread that runs the io_context.
class FairQueue {
 public:
  using Work = std::function<void()>;                    // in the queue's thread
  using Then = std::function<void(const std::string&)>;  // in the io_context's; not empty: what the work threw

  explicit FairQueue(boost::asio::io_context& io) : io_(io) {}
  ~FairQueue() { pool_.join(); }
  void run(uid_t user, Work work, Then then);

 private:
  struct Item {
    Work work;
    Then then;
  };
  void next();

  boost::asio::io_context& io_;
  boost::asio::thread_pool pool_{1};
  std::map<uid_t, std::deque<Item>> waiting_;  // none is empty
  std::deque<uid_t> turns_;                    // each user in waiting_ once
  bool busy_ = false;
};

// How often each user may ask: a burst, then at a steady rate. One thread.
class UserBudget {
 public:
  using Clock = std::chrono::steady_clock;

  // How long a question that comes now has to wait; nothing: longer than `patience`, it is refused, and not counted.
  std::optional<Clock::duration> take(uid_t user, Clock::time_point now);

  static constexpr int kBurst = 100;
  static constexpr std::chrono::milliseconds kEvery{100}, kPatience{10'000};

 private:
  std::map<uid_t, Clock::time_point> free_at_;  // when all that was asked is paid for
};

}  // namespace icp
