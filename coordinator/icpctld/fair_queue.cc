// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/fair_queue.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>

namespace icp {

void FairQueue::run(uid_t user, Work work, Then then) {
  std::deque<Item>& mine = waiting_[user];
  if (mine.empty()) turns_.push_back(user);
  mine.push_back({std::move(work), std::move(then)});
  next();
}

void FairQueue::next() {
  if (busy_ || turns_.empty()) return;
  busy_ = true;
  const uid_t user = turns_.front();
  turns_.pop_front();
  const auto found = waiting_.find(user);
  const auto item = std::make_shared<Item>(std::move(found->second.front()));
  found->second.pop_front();
  if (found->second.empty()) {
    waiting_.erase(found);
  } else {
    turns_.push_back(user);
  }
  boost::asio::post(pool_, [this, item] {
    std::string why;
    try {
      item->work();
    } catch (const std::exception& error) {
      why = error.what();
    }
    boost::asio::post(io_, [this, item, why] {
      busy_ = false;
      next();
      item->then(why);
    });
  });
}

std::optional<UserBudget::Clock::duration> UserBudget::take(uid_t user, Clock::time_point now) {
  constexpr size_t kMostUsers = 1000;  // of whom more is known than that they may ask
  if (free_at_.size() > kMostUsers) std::erase_if(free_at_, [now](const auto& entry) { return entry.second <= now; });
  Clock::time_point& free_at = free_at_.try_emplace(user, now).first->second;
  free_at = std::max(free_at, now);
  const auto wait = std::max(free_at - now - kBurst * kEvery, Clock::duration::zero());
  if (wait > kPatience) return std::nullopt;
  free_at += kEvery;
  return wait;
}

}  // namespace icp
